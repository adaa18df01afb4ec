"""Progress of an evaluation: progress reports, and requests to stop."""

from __future__ import annotations

import time

from wcl_core.reporter import Reporter
from wcl_core.stop import check

_REPORT_SECONDS = 1.0


class Progress:
    """The progress in parts of equal weight: the features are the first part, then each protocol is one.

    Args:
        reporter: receives the progress.
        total: number of parts.
    """

    def __init__(self, reporter: Reporter, total: int) -> None:
        self._reporter, self._total = reporter, total
        self._started_at = self._reported_at = time.monotonic()
        self._done = 0

    def reach(self, done: int) -> None:
        """Set the number of finished parts.

        Raises:
            Interrupted: there is a request to stop, and parts remain.
        """
        self._done = done
        if done < self._total:
            check()
        self._report(0.0)

    def tick(self, share: float) -> None:
        """Set the finished share (0..1) of a long protocol; it is reported about once a second.

        Raises:
            Interrupted: there is a request to stop.
        """
        check()
        if time.monotonic() - self._reported_at >= _REPORT_SECONDS:
            self._report(share)

    def _report(self, share: float) -> None:
        self._reported_at = time.monotonic()
        done = self._done + share
        elapsed = self._reported_at - self._started_at
        self._reporter.progress(
            step=self._done,
            total_steps=self._total,
            epoch=done / self._total,
            total_epochs=1,
            phase="evaluate",
            eta_seconds=elapsed / done * (self._total - done) if done else None,
        )
