"""How fast a run trains; what happens beside the training is left out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_REPORT_SECONDS = 1.0


class Clock:
    """Images per second of training alone: what happens while the clock is stopped does not count.

    Args:
        step: the first one.
        batch_size: images of a step.
    """

    def __init__(self, step: int, batch_size: int) -> None:
        self._batch_size = batch_size
        self._last_report = 0.0
        self._window = self._overall = (time.monotonic(), step)

    def is_due(self) -> bool:
        """Whether a second has passed since this last said so."""
        now = time.monotonic()
        if now - self._last_report < _REPORT_SECONDS:
            return False
        self._last_report = now
        return True

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave the time of the block out of all rates."""
        stopped_at = time.monotonic()
        yield
        lost = time.monotonic() - stopped_at
        self._window = (self._window[0] + lost, self._window[1])
        self._overall = (self._overall[0] + lost, self._overall[1])

    def window_images_per_second(self, step: int) -> float | None:
        """Rate since the last call."""
        since, self._window = self._window, (time.monotonic(), step)
        return self._rate(since, step)

    def images_per_second(self, step: int) -> float | None:
        """Rate since the run's start."""
        return self._rate(self._overall, step)

    def _rate(self, since: tuple[float, int], step: int) -> float | None:
        elapsed = time.monotonic() - since[0]
        return (step - since[1]) * self._batch_size / elapsed if step > since[1] and elapsed > 0 else None
