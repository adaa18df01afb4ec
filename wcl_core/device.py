"""The device of a run: the GPUs that it has to use, the check that they work, and the causes of CUDA's errors.

A run never falls back to the CPU: it computes there if its spec or its worker says so, or if the machine has no GPU.
This module is the only one that decides it.
"""

from __future__ import annotations

import re
from typing import Literal

import torch

from wcl_core.limits import gpu_numbers

Choice = Literal["auto", "cuda", "cpu"]
CudaReason = Literal["device_failed", "device_assert", "device_error"]

# Errors of one GPU.  214 ECC, 220 NVLink, 714 hardware stack; the driver also names a GPU that it has lost.
_BROKEN = re.compile(r"\becc error|nvlink|hardware stack error|gpu is lost|fallen off the bus", re.IGNORECASE)
_ASSERTED = re.compile(r"device-side assert", re.IGNORECASE)
_CUDA = re.compile(r"CUDA (driver |runtime )?error|(CUDNN|CUBLAS|CUSOLVER|CUSPARSE|CUFFT)_STATUS|NCCL (error|WARN)")
_NO_MEMORY = re.compile(r"CUDA (driver )?error: out of memory|CUDA out of memory|STATUS_ALLOC_FAILED|Cuda failure 2\b")
_LOST_PEER = re.compile(r"ncclRemoteError|remote process exited")
_REMEDIES = (
    (
        re.compile(r"not compiled with CUDA|no CUDA runtime", re.IGNORECASE),
        "this PyTorch is built without CUDA; install a build with CUDA",
    ),
    (
        re.compile(
            r"no NVIDIA driver|too old|insufficient|mismatch|unsupported toolchain|forward compatibility", re.IGNORECASE
        ),
        "install or update the driver of the GPU, or install a PyTorch that is built for it; then restart the machine",
    ),
    (
        re.compile(r"no kernel image", re.IGNORECASE),
        "this PyTorch is not built for this model of GPU; install one that is",
    ),
)
_OTHERWISE = "nvidia-smi may show the problem; a restart of the machine often ends it"


class DeviceError(RuntimeError):
    """A run cannot use the GPU that it has to use.

    Attributes:
        is_whole_machine: whether the cause concerns all GPUs of the machine, as an old driver does.
        index: of the broken GPU among those of the run on this machine; None for the one of this process.
    """

    def __init__(self, message: str, *, is_whole_machine: bool, index: int | None = None) -> None:
        super().__init__(message)
        self.is_whole_machine, self.index = is_whole_machine, index


def usable_gpus(choice: Choice, held: int | None = None) -> int:
    """Return how many GPUs this process sees and may use; 0 for a run on the CPU.

    Args:
        choice: `device` of the spec.
        held: number of GPUs that the run's worker has given to it; None for a run that no worker has started.

    Raises:
        DeviceError: the run has to use a GPU, and PyTorch sees none.
    """
    if choice == "cpu" or held == 0:
        return 0
    if count := torch.cuda.device_count():
        return count
    if not held and choice == "auto" and not gpu_numbers():
        return 0
    cause = _initialisation_error()
    if held:
        what = "the run holds a GPU and cannot use it"
    elif choice == "cuda":
        what = "device is cuda, and the run cannot use a GPU"
    else:
        what = "this machine has a GPU, and the run cannot use it"
    message = f"{what}: {cause}; {_remedy(cause) or _OTHERWISE}, or train with device: cpu"
    # CUDA lists the GPUs before the first one that does not work, so that one is broken.
    raise DeviceError(message, is_whole_machine=_remedy(cause) is not None, index=0)


def check(device: torch.device) -> None:
    """Compute once on a GPU; do nothing for the CPU.

    Raises:
        DeviceError: the GPU does not compute.
        torch.OutOfMemoryError: another program has taken its memory.
    """
    if device.type != "cuda":
        return
    try:
        torch.ones(8, device=device).sum().item()
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        cause = first_line(error)
        message = f"the run cannot use {device}: {cause}; {_remedy(cause) or _OTHERWISE}, or train with device: cpu"
        raise DeviceError(message, is_whole_machine=_remedy(cause) is not None) from error


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the memory of a GPU is full; libraries and the driver report it in words only."""
    is_full = isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))
    return isinstance(error, torch.OutOfMemoryError) or bool(is_full)


def cuda_reason(error: Exception) -> CudaReason | None:
    """Return the reason of a failure of CUDA or NCCL; None for any other error.

    Returns:
        `device_failed` for a broken GPU; `device_assert` for a check within a kernel, a fault of the code that would
        repeat itself; `device_error` for all others, such as a failed launch, whose cause is unknown.
    """
    text = str(error)
    if isinstance(error, DeviceError):
        return "device_failed"
    if not isinstance(error, torch.AcceleratorError | torch.distributed.DistBackendError) and not (
        isinstance(error, RuntimeError) and _CUDA.search(text)
    ):
        return None
    if _ASSERTED.search(text):
        return "device_assert"
    return "device_failed" if _BROKEN.search(text) else "device_error"


def is_lost_peer(error: Exception) -> bool:
    """Return whether an error of a collective only says that another process is gone, or cannot tell."""
    return cuda_reason(error) is None or bool(_LOST_PEER.search(str(error)))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, which states the cause; PyTorch adds advice for developers."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _initialisation_error() -> str:
    """Return why PyTorch sees no GPU."""
    try:
        torch.cuda.init()
    except Exception as error:  # each kind of failure has a type of its own
        return first_line(error)
    return "PyTorch sees no GPU"


def _remedy(cause: str) -> str | None:
    """Return the remedy for a cause that concerns all GPUs of the machine; None for any other."""
    return next((remedy for pattern, remedy in _REMEDIES if pattern.search(cause)), None)
