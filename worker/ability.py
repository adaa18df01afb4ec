"""Whether this worker can take jobs: its checks run before each claim and with each heartbeat.

A check returns why the worker is unable, or None.  It runs on a thread, because a storage that does not respond must
not hold up heartbeats; a check that takes too long makes the worker unable.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from jobs import storage_id
from jobs.database import Database
from jobs.status import Reason
from jobs.storage import Storage, StorageUnavailable
from jobs.workers import Unable
from worker.background import BackgroundWork

log = logging.getLogger(__name__)

Check = Callable[[], Unable | None]  # a look at what concerns some jobs only returns None always
_CHECK_SECONDS = 5.0
_COMPARE_SECONDS = 1.0  # between two looks at the database for the storage's id; claims may follow each other faster


class Ability:
    """The checks of one worker, in order.

    Args:
        checks: the first one that returns a reason decides.

    Attributes:
        unable: the result of the last call of `check`.
    """

    def __init__(self, *checks: Check) -> None:
        self._checks = checks
        self._lock = threading.Lock()  # several threads ask
        self._running: BackgroundWork[Unable | None] | None = None
        self.unable: Unable | None = None

    def check(self) -> Unable | None:
        """Run the checks; return why the worker takes no jobs now, or None.

        Raises:
            DBAPIError: the database does not respond.
        """
        with self._lock:
            before, self.unable = self.unable, self._result()
            if self.unable is not None and self.unable != before:
                log.error("this worker takes no jobs: %s", self.unable.message)
            elif self.unable is None and before is not None:
                log.info("this worker takes jobs again")
            return self.unable

    def _result(self) -> Unable | None:
        hung = self._running is not None
        work = self._running = self._running or BackgroundWork(self._run)
        if not work.is_done(0.0 if hung else _CHECK_SECONDS):  # one thread at a time waits for a hung storage
            return Unable(Reason.STORAGE_UNAVAILABLE, f"a check of the storage takes more than {_CHECK_SECONDS:g} s")
        self._running = None
        return work.result() if not hung else self._result()

    def _run(self) -> Unable | None:
        return next((unable for check in self._checks if (unable := check()) is not None), None)


class StorageCheck:
    """The check of the storage: whether it is there, and has the id of the database."""

    def __init__(self, database: Database, storage: Storage) -> None:
        self._database, self._storage = database, storage
        self._next_comparison = 0.0

    def __call__(self) -> Unable | None:
        try:
            if time.monotonic() < self._next_comparison:
                self._storage.check()
            else:
                storage_id.connect(self._database, self._storage)
                self._next_comparison = time.monotonic() + _COMPARE_SECONDS
        except StorageUnavailable as error:
            return Unable(Reason.STORAGE_UNAVAILABLE, str(error))
        return None
