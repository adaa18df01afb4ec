"""The devices of this machine: the number of GPUs that a worker may use, and the memory of one.

`nvidia-smi` queries the driver, because torch would occupy GPU memory for the whole life of the worker.
"""

from __future__ import annotations

import os
import subprocess

import psutil

_TIMEOUT_SECONDS = 30


def num_gpus() -> int:
    """Return the number of GPUs that this process may use."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    listing = _nvidia_smi("-L")
    return 0 if listing is None else len(listing.splitlines())


def device_bytes(gpus: int) -> int | None:
    """Return the most memory that a training process can have, in bytes.

    Args:
        gpus: number of GPUs of the worker.

    Returns:
        The memory of the largest visible GPU, or of the machine without GPUs; None when the driver does not respond.
    """
    if gpus == 0:
        return int(psutil.virtual_memory().total)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    options = ("--query-gpu=memory.total", "--format=csv,noheader,nounits")
    listing = _nvidia_smi(*options, *([f"--id={visible}"] if visible else []))
    try:
        return max(int(line) for line in (listing or "").split()) << 20
    except ValueError:
        return None


def _nvidia_smi(*options: str) -> str | None:
    command = ["nvidia-smi", *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
