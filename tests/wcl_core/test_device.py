"""The device of a run: never the CPU instead of a GPU, and a reason for each error of CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributed import DistBackendError

from tests.wcl_core.test_attempt import last_word, write_run
from wcl_core import __main__ as program
from wcl_core import device as devices
from wcl_core.attempt import classify, describe, run_attempt
from wcl_core.device import DeviceError, check, usable_gpus
from wcl_core.distributed import PeerLostError, Ranks, device_of, peers
from wcl_core.limits import gpu_numbers
from wcl_core.protocol import DEVICE_FAULT_FILES, DeviceFault, device_fault_file

ADVICE = "\nCUDA kernel errors might be asynchronously reported at some other API call."
NCCL = "NCCL error in: ProcessGroupNCCL.cpp:3690, {0}, NCCL version 2.28.9\n{1}: it failed"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered" + ADVICE), "device_failed"),
        (torch.AcceleratorError("CUDA error: hardware stack error" + ADVICE), "device_failed"),
        (RuntimeError("CUDA driver error: uncorrectable NVLink error detected"), "device_failed"),
        (DeviceError("the run cannot use cuda", is_whole_machine=True), "device_failed"),
        (torch.AcceleratorError("CUDA error: device-side assert triggered" + ADVICE), "device_assert"),
        (torch.AcceleratorError("CUDA error: unspecified launch failure" + ADVICE), "device_error"),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered" + ADVICE), "device_error"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "device_error"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"), "device_error"),
        (DistBackendError(NCCL.format("unhandled cuda error", "ncclUnhandledCudaError")), "device_error"),
        (torch.AcceleratorError("CUDA error: out of memory" + ADVICE), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out_of_memory"),
        (ValueError("CUDA error: a text of a plugin"), "internal_error"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "internal_error"),
    ],
)
def test_each_error_of_cuda_has_a_reason(error: Exception, reason: str) -> None:
    assert classify(error) == reason
    assert "asynchronously" not in describe(error)


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("Connection closed by peer [127.0.0.1]:4021"), True),
        (DistBackendError(NCCL.format("remote process exited or there was a network error", "ncclRemoteError")), True),
        (DistBackendError(NCCL.format("unhandled cuda error", "ncclUnhandledCudaError")), False),
    ],
)
def test_a_fault_of_nccl_is_told_apart_from_a_lost_peer(error: Exception, is_lost: bool) -> None:
    with pytest.raises(PeerLostError) as caught, peers():
        raise error
    assert devices.is_lost_peer(caught.value) == is_lost


def test_an_error_of_this_ranks_own_gpu_in_a_collective_is_its_cause() -> None:
    with pytest.raises(torch.AcceleratorError), peers():
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")


@pytest.mark.parametrize(
    ("choice", "held", "seen", "numbers", "expected"),
    [
        ("auto", None, 0, [], 0),
        ("auto", None, 2, [0, 1], 2),
        ("auto", None, 0, [0], "this machine has a GPU, and the run cannot use it"),
        ("auto", 0, 1, [0], 0),  # the worker gave it no GPU, or stand-ins
        ("auto", 1, 0, [], "the run holds a GPU and cannot use it"),
        ("cuda", None, 0, [], "device is cuda, and the run cannot use a GPU"),
        ("cuda", 0, 0, [], 0),
        ("cuda", None, 1, [0], 1),
        ("cpu", None, 2, [0, 1], 0),
        ("cpu", 1, 1, [0], 0),
    ],
)
def test_no_run_falls_back_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
    choice: devices.Choice,
    held: int | None,
    seen: int,
    numbers: list[int],
    expected: int | str,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(devices, "gpu_numbers", lambda: numbers)
    if isinstance(expected, str):
        with pytest.raises(DeviceError, match=expected) as caught:
            usable_gpus(choice, held)
        assert "or train with device: cpu" in str(caught.value)
    else:
        assert usable_gpus(choice, held) == expected


@pytest.mark.parametrize(
    ("cause", "remedy", "is_whole_machine"),
    [
        ("CUDA error: no kernel image is available for execution on the device", "install one that is", True),
        ("The NVIDIA driver on your system is too old (found version 11040)", "update the driver", True),
        ("Found no NVIDIA driver on your system", "install or update the driver", True),
        ("CUDA unknown error - this may be due to an incorrectly set up environment", "nvidia-smi", False),
        ("CUDA error: unspecified launch failure", "nvidia-smi", False),
        ("CUDA error: uncorrectable ECC error encountered", "nvidia-smi", False),
    ],
)
def test_a_gpu_that_does_not_compute_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, cause: str, remedy: str, is_whole_machine: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.AcceleratorError(cause + ADVICE)

    monkeypatch.setattr(torch, "ones", fail)
    with pytest.raises(DeviceError) as caught:
        check(torch.device("cuda", 0))

    assert str(caught.value).startswith(f"the run cannot use cuda:0: {cause}; ")
    assert remedy in str(caught.value)
    assert caught.value.is_whole_machine is is_whole_machine
    check(torch.device("cpu"))


@pytest.mark.parametrize(
    ("names", "visible", "expected"),
    [
        (["nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm"], None, [0, 12]),
        (["nvidia0"], "GPU-1", [0]),
        (["nvidia0"], "", []),
        (["nvidia0"], "-1", []),
        (["null"], None, []),
    ],
)
def test_the_gpus_of_a_machine_are_those_of_its_device_files(
    tmp_path: Path, names: list[str], visible: str | None, expected: list[int]
) -> None:
    for name in names:
        (tmp_path / name).touch()
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}

    assert gpu_numbers(environment, tmp_path) == expected


def test_an_attempt_that_holds_gpus_and_cannot_use_them_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    folder = write_run(tmp_path / "attempt", gpus=1)

    assert run_attempt(folder, None) == 0

    word = last_word(folder)
    assert (word["outcome"], word["reason"]) == ("failed", "device_failed")
    assert "the run holds a GPU and cannot use it: " in word["message"]
    (path,) = folder.glob(DEVICE_FAULT_FILES)
    assert DeviceFault.read(path) == DeviceFault(message=word["message"], is_whole_machine=True)
    assert not list(folder.glob("checkpoints/*"))


@pytest.mark.parametrize("seen", [0, 1])
def test_a_gpu_that_cuda_does_not_list_is_the_only_one_that_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: int
) -> None:
    """CUDA lists the GPUs before the first one that does not work; each rank reports that one, whichever is first."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(devices, "_initialisation_error", lambda: "CUDA unknown error")
    folder = write_run(tmp_path / "attempt", gpus=3)

    for rank in range(3):
        with pytest.raises(DeviceError) as caught:
            device_of(Ranks(rank, 3), held=3)
        assert (caught.value.index, caught.value.is_whole_machine) == (seen, False)

    def fail(*_: object, **__: object) -> None:
        raise caught.value

    monkeypatch.setattr("wcl_core.attempt.joined", fail)
    assert run_attempt(folder, None) == 0

    assert [path.name for path in folder.glob(DEVICE_FAULT_FILES)] == [device_fault_file(seen)]


def test_a_lone_machine_with_a_gpu_trains_on_the_cpu_only_if_the_spec_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(devices, "gpu_numbers", lambda: [0])
    spec = "{{data: {{name: digits, image_size: 8}}, features: {{kind: pixels}}, protocols: [knn], device: {0}}}"
    (tmp_path / "auto.yaml").write_text(spec.format("auto"))
    (tmp_path / "cpu.yaml").write_text(spec.format("cpu"))

    assert program.main(["evaluate", str(tmp_path / "auto.yaml"), "--output", str(tmp_path)]) == 1
    assert "this machine has a GPU, and the run cannot use it" in capsys.readouterr().err
    assert program.main(["evaluate", str(tmp_path / "cpu.yaml"), "--output", str(tmp_path)]) == 0
