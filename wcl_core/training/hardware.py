"""How busy a run keeps its machine, measured within its own process: now and then, without a wait for the device.

What cannot be had here is left out: NVML's Python library may be absent, and only Linux has /proc.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from wcl_core.protocol import CPU_PERCENT, GPU_MEMORY_MIB, GPU_PERCENT, PROCESS_MEMORY_MIB

EVERY_SECONDS = 5.0
_MEBIBYTE = 1 << 20


class Hardware:
    """Measurements of this process and its GPU, none of them between two that are due.

    Args:
        device: where the training is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._has_nvml = device.type == "cuda"
        self._next = 0.0
        self._since = (time.monotonic(), time.process_time())

    def due(self) -> dict[str, float]:
        """Measurements by the names of their metrics, the first time and then every five seconds; else none.

        Returns:
            `system/cpu_percent`: of one core, since the last time; `system/process_memory_mib`: resident;
            `system/gpu_memory_mib`: what torch's allocator holds; `system/gpu_percent`: of the time, by NVML.
        """
        now = time.monotonic()
        if now < self._next:
            return {}
        self._next = now + EVERY_SECONDS
        return self._processor(now) | self._memory() | self._gpu()

    def _processor(self, now: float) -> dict[str, float]:
        (before, used_before), used = self._since, time.process_time()
        self._since = (now, used)
        return {CPU_PERCENT: 100 * (used - used_before) / (now - before)} if now > before else {}

    def _memory(self) -> dict[str, float]:
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            return {}
        return {PROCESS_MEMORY_MIB: pages * os.sysconf("SC_PAGE_SIZE") / _MEBIBYTE}

    def _gpu(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {}
        found = {GPU_MEMORY_MIB: torch.cuda.memory_reserved(self._device) / _MEBIBYTE}
        if self._has_nvml:
            try:
                found[GPU_PERCENT] = float(torch.cuda.utilization(self._device))
            except Exception:  # the library is absent, or it says in its own ways that this GPU does not tell
                self._has_nvml = False
        return found
