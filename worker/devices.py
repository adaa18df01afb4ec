"""How much memory a training process of this worker can have at most."""

from __future__ import annotations

import os
import subprocess

import psutil


def device_bytes(gpus: int) -> int | None:
    """Bytes of the largest visible GPU, asked of the driver, or of the machine without GPUs; None when nobody tells."""
    if gpus == 0:
        return int(psutil.virtual_memory().total)
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={visible}")
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return max(int(line) for line in listing.stdout.split()) << 20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
