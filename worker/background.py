"""What takes long on files: copying, hashing, syncing, listing on a slow storage; whoever waits goes on listening."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from jobs.settings import Settings
from jobs.storage import StorageUnavailable

T = TypeVar("T")


class Errand(Generic[T]):
    """A piece of work on a thread of its own.

    Callbacks between the chunks of a copy would not do: one call that syncs a large file may outlast a lease.  Nobody
    can end it; whoever has no more time leaves it behind, and the process does not wait for it.

    Args:
        work: what it does, and what it comes to.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._found: list[T] = []
        self._error: Exception | None = None
        self._began_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True, name="errand")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found.append(self._work())
        except Exception as error:  # whoever asks for the result gets it
            self._error = error

    def is_done(self, seconds: float | None = 0.0) -> bool:
        """Whether it is done, after waiting for it so long at most; without a limit with None."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began_at

    def result(self) -> T:
        """What it came to; or raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._found[0]


def must_go_on(errand: Errand[Any], settings: Settings) -> None:
    """Refuse to wait for longer than a run may be silent.

    Raises:
        StorageUnavailable: it has taken so long.
    """
    if errand.seconds() > settings.stall_seconds:
        raise StorageUnavailable(f"the storage folder has held up a file for {errand.seconds():.0f} s")
