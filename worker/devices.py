"""The devices of this machine: the number of GPUs that a worker may use, and the memory of one.

`nvidia-smi` queries the driver, because torch would occupy GPU memory for the whole life of the worker.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

from jobs.workers import Unable
from wcl_core.limits import memory_bytes
from worker.background import BackgroundWork

_TIMEOUT_SECONDS = 30
_CHECK_SECONDS = 60.0
_PATIENCE_SECONDS = 2.0  # of a check; a driver that takes longer is asked in the background


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
        The memory of the largest visible GPU; without GPUs that of the machine, or of this worker's control group if
        that is less; None when the driver does not respond.
    """
    if gpus == 0:
        return memory_bytes()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    options = ("--query-gpu=memory.total", "--format=csv,noheader,nounits")
    listing = _nvidia_smi(*options, *([f"--id={visible}"] if visible else []))
    try:
        return max(int(line) for line in (listing or "").split()) << 20
    except ValueError:
        return None


class GpuCheck:
    """The check that the GPUs still respond, every minute, on a worker whose driver responded at its start.

    Args:
        gpus: that the worker offers.
        count: returns how many respond, or None without an answer of the driver.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        gpus: int,
        count: Callable[[], int | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count, self._clock = count or _num_responding, clock
        self._expected = (self._count() or 0) if gpus else 0
        self._next_at = clock() + _CHECK_SECONDS
        self._counting: BackgroundWork[int | None] | None = None
        self._unable: Unable | None = None

    def __call__(self) -> Unable | None:
        """Return the result of the last count; a count runs beside, since the driver may take long."""
        if self._expected and self._counting is None and self._clock() >= self._next_at:
            self._counting = BackgroundWork(self._count)
        if self._counting is not None and self._counting.is_done(_PATIENCE_SECONDS):
            number = self._counting.result() or 0
            self._counting, self._next_at = None, self._clock() + _CHECK_SECONDS
            is_short = number < self._expected
            message = f"{self._expected - number} of its {self._expected} GPUs do not respond"
            self._unable = Unable("gpu_unavailable", message) if is_short else None
        return self._unable


def _num_responding() -> int | None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    listing = _nvidia_smi("--query-gpu=index", "--format=csv,noheader", *([f"--id={visible}"] if visible else []))
    return None if listing is None else len(listing.splitlines())


def _nvidia_smi(*options: str) -> str | None:
    command = ["nvidia-smi", *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
