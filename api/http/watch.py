"""Regular checks of what the server needs besides its database; a request reads their results and never waits.

A folder that is not mounted and a broker that is away make the server less useful, not unready.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from jobs import storage_id, wake_up
from jobs.database import Database
from jobs.settings import Settings
from jobs.storage import Storage, StorageUnavailable

log = logging.getLogger(__name__)

_SECONDS = 5.0
_HANG_SECONDS = 15.0
_LOW_BYTES = 1 << 30


class Watch:
    """The regular check of one thing.

    Args:
        name: the thing, as the beginning of a sentence.
        look: returns why it cannot be used, a sentence without a full stop, or None; it may hang.
    """

    def __init__(self, name: str, look: Callable[[], str | None]) -> None:
        self._name, self._look = name, look
        self._problem: str | None = None
        self._began: float | None = None  # of the check that runs now

    @property
    def problem(self) -> str | None:
        """Why the thing cannot be used, as of the last check; None if it can."""
        began = self._began
        if began is not None and time.monotonic() - began > _HANG_SECONDS:
            return f"{self._name} has not responded for {time.monotonic() - began:.0f} s"
        return self._problem

    def check(self) -> None:
        """Look once."""
        self._began = time.monotonic()
        before = self._problem
        try:
            self._problem = self._look()
        except DBAPIError as error:
            log.warning("%s is not checked: %s", self._name, error.orig)
        finally:
            self._began = None
        if self._problem != before:
            if self._problem is None:
                log.info("%s can be used again", self._name)
            else:
                log.error("%s", self._problem)

    def run(self, stop: threading.Event) -> None:
        """Check until `stop`; for a thread of its own."""
        while not stop.wait(_SECONDS):
            self.check()


class StorageWatch(Watch):
    """The check that this server reaches the database's storage, and that the storage has room.

    Attributes:
        free_bytes: of its disk, as of the last check; None before it, and where unknown.
    """

    def __init__(self, database: Database, storage: Storage) -> None:
        super().__init__(storage.kind, self._look_at_storage)
        self._database, self._storage = database, storage
        self.free_bytes: int | None = None

    @property
    def shortage(self) -> str | None:
        """That there is little room, a sentence without a full stop; None if there is enough."""
        if self.free_bytes is None or self.free_bytes >= _LOW_BYTES:
            return None
        return f"the disk of the storage is nearly full: {self.free_bytes / (1 << 20):,.0f} MiB are free"

    def _look_at_storage(self) -> str | None:
        try:
            storage_id.connect(self._database, self._storage)
            self.free_bytes = self._storage.free_bytes()
        except StorageUnavailable as error:
            return str(error)
        return None


def broker_watch(settings: Settings) -> Watch:
    """Return the check that the broker takes wake-ups; without it jobs start at the next poll of a worker."""
    return Watch("the broker", lambda: wake_up.problem(settings))
