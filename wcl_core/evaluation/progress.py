"""Progress of an evaluation: progress reports, and requests to stop."""

from __future__ import annotations

import time
from collections.abc import Sequence

from wcl_core.reporter import Reporter
from wcl_core.stop import check

_REPORT_SECONDS = 1.0


class Progress:
    """The progress in parts: the features are the first part, then each protocol is one.

    The parts take times that differ by orders of magnitude, so the time left is known in the last part alone.

    Args:
        reporter: receives the progress.
        parts: what each part computes, for people.
    """

    def __init__(self, reporter: Reporter, parts: Sequence[str]) -> None:
        self._reporter, self._parts, self._total = reporter, parts, len(parts)
        self._began_at = self._reported_at = time.monotonic()
        self._done = 0

    def reach(self, done: int) -> None:
        """Set the number of finished parts.

        Raises:
            Interrupted: there is a request to stop, and parts remain.
        """
        self._done, self._began_at = done, time.monotonic()
        if done < self._total:
            check()
        self._report(0.0)

    def tick(self, share: float) -> None:
        """Set the finished share (0..1) of a long part; it is reported about once a second.

        Raises:
            Interrupted: there is a request to stop.
        """
        check()
        if time.monotonic() - self._reported_at >= _REPORT_SECONDS:
            self._report(share)

    def _report(self, share: float) -> None:
        self._reported_at = time.monotonic()
        left = None
        if self._done + 1 == self._total and share:
            left = (self._reported_at - self._began_at) / share * (1 - share)
        self._reporter.progress(
            step=self._done,
            total_steps=self._total,
            epoch=(self._done + share) / self._total,
            total_epochs=1,
            phase="evaluate",
            eta_seconds=0.0 if self._done == self._total else left,
            share=share or None,
            part=self._parts[self._done] if self._done < self._total else None,
        )
