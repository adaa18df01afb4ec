"""Slow file operations on a thread, so that the caller keeps renewing its lease and reading requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Generic, TypeVar

from jobs.settings import Settings
from jobs.storage import StorageUnavailable

T = TypeVar("T")


class BackgroundWork(Generic[T]):
    """A function that runs on a thread of its own; its log lines have the facts of the caller's (`jobs.logs`).

    Callbacks between the chunks of a copy are not enough: one fsync of a large file may take longer than a lease.
    The thread cannot be ended: a caller without time abandons it, and the process exits without waiting for it.

    Args:
        work: the function.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._result: list[T] = []
        self._error: Exception | None = None
        self._started_at = time.monotonic()
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run,), daemon=True, name="background-work"
        )
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result.append(self._work())
        except Exception as error:  # `result` raises it on the caller's thread
            self._error = error

    def is_done(self, seconds: float | None = 0.0) -> bool:
        """Wait for at most `seconds`, or without a limit for None, and return whether the work is done."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._started_at

    def result(self) -> T:
        """Return the result of finished work, or raise its exception."""
        if self._error is not None:
            raise self._error
        return self._result[0]


def check_not_stalled(work: BackgroundWork[Any], settings: Settings) -> None:
    """Raise when work on the storage takes longer than a run may be silent.

    Raises:
        StorageUnavailable: the limit `stall_seconds` is over.
    """
    if work.seconds() > settings.stall_seconds:
        raise StorageUnavailable(f"a file has waited {work.seconds():.0f} s for the storage")
