"""The scrub: re-reads all registered checkpoints over time, so that decay of a disk is noticed before a file is needed.

Each worker reads at a stated pace, `WCL_SCRUB_MIB_PER_SECOND`; 0 switches its scrub off.  The file that was read
longest ago comes first, and no file is read twice within `WCL_SCRUB_DAYS`.  Several workers draw from the next files at
random, so that they rarely read the same one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import sys
import threading
import time
from typing import BinaryIO

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs import damage
from jobs.database import Database, now_ms
from jobs.fault_log import FaultLog
from jobs.models import Checkpoint
from jobs.settings import Settings
from jobs.storage import Storage, UnreadableFile

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_PAUSE_SECONDS = 0.5  # between two files, so that small ones cost the database little
_IDLE_SECONDS = 60.0  # nothing is due, or the storage is away
_DAY_MS = 86_400_000
_DRAWN = 16  # the next files, of which one is drawn


class Stopped(Exception):  # noqa: N818
    """The worker ends while a file is read."""


class Scrub:
    """The scrub of one worker.

    Args:
        database, storage, settings: the service.
    """

    def __init__(self, database: Database, storage: Storage, settings: Settings) -> None:
        self._database, self._storage = database, storage
        self._bytes_per_second = settings.scrub_mib_per_second * (1 << 20)
        self._age_ms = int(settings.scrub_days * _DAY_MS)
        self._lost: set[str] = set()  # jobs without any of their files; nothing is known about these files
        self._unreadable: set[str] = set()  # checkpoints whose file this account may not read

    def run(self, stop: threading.Event) -> None:
        """Scrub until `stop`; for a thread of its own."""
        if not self._bytes_per_second:
            return
        faults = FaultLog(log, "the scrub of checkpoints")
        while not stop.is_set():
            try:
                while self.step(stop) and not stop.wait(_PAUSE_SECONDS):
                    pass
            except Stopped:
                return
            except Exception as error:  # the thread must survive every error, since nothing restarts it
                faults.failed(error)
            else:
                faults.succeeded()
            stop.wait(_IDLE_SECONDS)

    def step(self, stop: threading.Event) -> bool:
        """Read the file that was not read for longest; return False if none is due.

        Raises:
            Stopped: `stop` is set.
            StorageUnavailable: the storage is away; the file is read in a later round.
        """
        self._storage.check()
        with self._database.read() as session:
            due = self._due(session)
        if not due:
            self._lost.clear()
            self._unreadable.clear()
            return False
        checkpoint_id = random.choice(due)
        try:
            flaw: Exception | None = damage.verify(
                self._database, self._storage, checkpoint_id, lambda file: self._digest_of(file, stop)
            )
        except damage.LostFiles as lost:
            self._lost.add(lost.job_id)
            flaw = lost
        except UnreadableFile as unreadable:  # others are read meanwhile
            self._unreadable.add(checkpoint_id)
            flaw = unreadable
        if flaw is not None:
            log.error("checkpoint %s: %s", checkpoint_id, flaw)
        return True

    def _due(self, session: Session) -> list[str]:
        """Return the checkpoints that were not read for longest, of those that may be read again."""
        read_at = func.coalesce(Checkpoint.checked_at, 0)
        may_be_read = (Checkpoint.deleted_at.is_(None), read_at < now_ms() - self._age_ms)
        others = (Checkpoint.job_id.not_in(self._lost), Checkpoint.id.not_in(self._unreadable))
        due = select(Checkpoint.id).where(*may_be_read, *others)
        return list(session.execute(due.order_by(read_at, Checkpoint.id).limit(_DRAWN)).scalars())

    def _digest_of(self, file: BinaryIO, stop: threading.Event) -> str:
        digest, began, done = hashlib.sha256(), time.monotonic(), 0
        _forget(file)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if stop.wait(max(0.0, began + done / self._bytes_per_second - time.monotonic())):
                raise Stopped
        _forget(file)
        return digest.hexdigest()


def _forget(file: BinaryIO) -> None:
    """Drop the file from the system's cache: its bytes on the disk count, and others need the memory more."""
    if sys.platform == "linux":
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
