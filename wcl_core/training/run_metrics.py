"""The metrics that a run reports beside its losses: means between two logs, speed, weak labels, use of the machine.

Window              means of scalars over the steps since the last log
MetricState         the state from which later metrics follow, part of every checkpoint
weak_label_metrics  `weak/...` of one batch
Clock               images per second of training
Hardware            `system/...` of this process and its GPU
"""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wcl_core.methods.weak_labels import largest_share, pair_precision, pair_precision_chance, view_agreement
from wcl_core.protocol import (
    COMPONENTS,
    CPU_PERCENT,
    GPU_MEMORY_MIB,
    GPU_PERCENT,
    LARGEST_SHARE,
    PAIR_PRECISION,
    PAIR_PRECISION_CHANCE,
    PROCESS_MEMORY_MIB,
    VIEW_AGREEMENT,
)
from wcl_core.training.collapse import CollapseWatch

_PROGRESS_SECONDS = 1.0
_FEWEST_STEPS = 3  # after which the speed of a process is told; the first one is slow
_SPAN_SECONDS = 1.0
_MOST_SPANS = 31  # the latest ones, whose median is the speed
HARDWARE_SECONDS = 5.0
_MEBIBYTE = 1 << 20


class Window:
    """Sums of scalars since the last log, kept on the device, so that adding a step does not wait for it.

    Attributes:
        total: (K,) float64 sums; None before the first step of a run.
        steps: the number of added steps.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.steps = 0

    def add(self, values: Tensor) -> None:
        """Add the (K,) scalars of one step."""
        if self.total is None or self.total.shape != values.shape:  # the first step, or a plugin has changed its terms
            self.total, self.steps = torch.zeros_like(values, dtype=torch.float64), 0
        self.total = self.total.to(values.device) + values
        self.steps += 1

    def means(self) -> list[float]:
        """Read the K means from the device and start a new window."""
        assert self.total is not None
        means: list[float] = (self.total / self.steps).tolist()
        self.total, self.steps = torch.zeros_like(self.total), 0
        return means


class MetricState:
    """The state from which later metrics follow; a checkpoint stores it beside the weights.

    Attributes:
        has_untrained: whether the untrained network was measured, if it is to be.
        untrained_correct: (M,) uint8, 1 for each measured image that it had right; None in states of older versions.
        latest: the latest values, which a checkpoint's record reports.
        window: the losses since the last log.
        collapse: the count of signs of collapse.
    """

    def __init__(self) -> None:
        self.has_untrained = False
        self.untrained_correct: Tensor | None = None
        self.latest: dict[str, float] = {}
        self.window = Window()
        self.collapse = CollapseWatch()

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint, below `metrics/`."""
        tensors = {"window": self.window.total, "untrained_correct": self.untrained_correct}
        return {f"metrics/{name}": tensor for name, tensor in tensors.items() if tensor is not None}

    def facts(self) -> dict[str, Any]:
        """Return the metadata of a checkpoint."""
        return {
            "has_untrained": self.has_untrained,
            "latest": dict(self.latest),
            "window_steps": self.window.steps,
            "collapse_signs": self.collapse.signs_in_a_row,
        }

    def load(self, part: Callable[[str], dict[str, Tensor]], facts: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint; one of an older version stores none of it.

        Args:
            part: returns the tensors of the checkpoint below a prefix.
            facts: as `facts` returned them; empty in an older checkpoint.
        """
        self.has_untrained = facts.get("has_untrained", True)  # earlier versions measured it before the first step
        self.latest.update(facts.get("latest", {}))
        self.window.total = part("metrics/").get("window")
        self.untrained_correct = part("metrics/").get("untrained_correct")
        self.window.steps = facts.get("window_steps", 0)
        self.collapse.signs_in_a_row = facts.get("collapse_signs", 0)


def weak_label_metrics(y1: Tensor, y2: Tensor, classes: Tensor | None) -> dict[str, float]:
    """Return cheap measures of the quality of a batch's weak labels, by the names of their metrics.

    All of them are read from the device at once.

    Args:
        y1, y2: (B,) int64 weak labels by each view.
        classes: (B,) int64 true classes; None if the images have none.
    """
    values = {
        COMPONENTS: torch.tensor(float(len(y1.unique())), dtype=torch.float64, device=y1.device),
        LARGEST_SHARE: (largest_share(y1) + largest_share(y2)) / 2,
        VIEW_AGREEMENT: view_agreement(y1, y2),
    }
    if classes is not None:
        values[PAIR_PRECISION] = (pair_precision(y1, classes) + pair_precision(y2, classes)) / 2
        values[PAIR_PRECISION_CHANCE] = pair_precision_chance(classes)
    return dict(zip(values, torch.stack(tuple(values.values())).tolist(), strict=True))


class Clock:
    """Images per second of training; the time while the clock is stopped does not count.

    The speed is that of the latest steps: the median over spans of at least a second, so that it follows a machine that
    gets slower, and a single pause does not change it.

    Args:
        step: the first step of this process.
        batch_size: images of a step.
    """

    def __init__(self, step: int, batch_size: int) -> None:
        self._batch_size = batch_size
        self._last_progress = 0.0
        self._first = step
        self._window = self._span = (time.monotonic(), step)
        self._seconds_per_step: deque[float] = deque(maxlen=_MOST_SPANS)

    def is_due(self) -> bool:
        """Return whether progress is due, which is at most once a second."""
        now = time.monotonic()
        if now - self._last_progress < _PROGRESS_SECONDS:
            return False
        self._last_progress = now
        return True

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave the time of the block out of all rates."""
        stopped_at = time.monotonic()
        yield
        lost = time.monotonic() - stopped_at
        self._window = (self._window[0] + lost, self._window[1])
        self._span = (self._span[0] + lost, self._span[1])

    def tick(self, step: int) -> None:
        """Count a step that has ended."""
        now, (since, first) = time.monotonic(), self._span
        if step == self._first + 1:
            self._span = (now, step)
        elif now - since >= _SPAN_SECONDS:
            self._seconds_per_step.append((now - since) / (step - first))
            self._span = (now, step)

    def window_images_per_second(self, step: int) -> float | None:
        """Return the rate since the last call."""
        since, self._window = self._window, (time.monotonic(), step)
        return self._rate(since, step)

    def images_per_second(self, step: int) -> float | None:
        """Return the rate of the latest steps; None before the third step of this process."""
        if step - self._first < _FEWEST_STEPS:
            return None
        if not self._seconds_per_step:
            return self._rate(self._span, step)
        return self._batch_size / statistics.median(self._seconds_per_step)

    def _rate(self, since: tuple[float, int], step: int) -> float | None:
        elapsed = time.monotonic() - since[0]
        return (step - since[1]) * self._batch_size / elapsed if step > since[1] and elapsed > 0 else None


class Hardware:
    """Measurements of this process and its GPU, taken every five seconds without waiting for the device.

    A measurement that this machine cannot give is left out: NVML's Python library may be absent, and only Linux has
    /proc.

    Args:
        device: the device that the run trains on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._has_nvml = device.type == "cuda"
        self._next = 0.0
        self._since = (time.monotonic(), time.process_time())

    def due(self) -> dict[str, float]:
        """Return measurements by the names of their metrics, at the first call and then every 5 s; otherwise none.

        Returns:
            `system/cpu_percent`: of one core, since the last measurement; `system/process_memory_mib`: resident;
            `system/gpu_memory_mib`: reserved by torch's allocator; `system/gpu_percent`: of the time, by NVML.
        """
        now = time.monotonic()
        if now < self._next:
            return {}
        self._next = now + HARDWARE_SECONDS
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
        values = {GPU_MEMORY_MIB: torch.cuda.memory_reserved(self._device) / _MEBIBYTE}
        if self._has_nvml:
            try:
                values[GPU_PERCENT] = float(torch.cuda.utilization(self._device))
            except Exception:  # the library is absent or does not support this GPU; it has many errors for that
                self._has_nvml = False
        return values
