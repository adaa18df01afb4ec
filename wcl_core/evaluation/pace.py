"""How far an evaluation is, and whether it has been asked to stop."""

from __future__ import annotations

import time

from wcl_core.reporter import Reporter, Request

_REPORT_SECONDS = 1.0


class Interrupted(Exception):  # noqa: N818 (an answer to a request, no error)
    """The run was asked to stop in the middle of a protocol; nothing of that protocol counts."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.request: Request = request


class Pace:
    """Counts parts of equal weight: computing the features is the first one, then each protocol.

    Args:
        reporter: told the progress; asked for requests.
        total: number of parts.
    """

    def __init__(self, reporter: Reporter, total: int) -> None:
        self._reporter, self._total = reporter, total
        self._started_at = self._reported_at = time.monotonic()
        self._done = 0

    def reach(self, done: int) -> None:
        """So many parts are done.

        Raises:
            Interrupted: when the run was asked to stop.
        """
        self._done = done
        if done < self._total and (request := self._reporter.request()):
            raise Interrupted(request)
        self._report(0.0)

    def tick(self, share: float) -> None:
        """A protocol that takes long is at `share` (0..1) of its part; told about once a second.

        Raises:
            Interrupted: when the run was asked to stop.
        """
        if request := self._reporter.request():
            raise Interrupted(request)
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
