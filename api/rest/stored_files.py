"""Registered files for responses: the only way in which bytes of the storage leave the server.

Every byte was compared with the registered digest since the file was last touched.  A checkpoint that differs gets a
mark.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import BinaryIO

from sqlalchemy.exc import DBAPIError

from api.http.problems import Gone, Unready
from jobs import damage, storage_id
from jobs.checked_files import BadFile
from jobs.database import Database
from jobs.models import Artifact, Checkpoint
from jobs.storage import Storage, StorageUnavailable

log = logging.getLogger(__name__)

_WATCH_SECONDS = 5.0
_HANG_SECONDS = 15.0


class StorageWatch:
    """The regular check that this server reaches the database's storage; a request never waits for it.

    Args:
        database, storage: the service.
    """

    def __init__(self, database: Database, storage: Storage) -> None:
        self._database, self._storage = database, storage
        self._problem: str | None = None
        self._began: float | None = None  # of the check that runs now

    @property
    def problem(self) -> str | None:
        """Why the storage cannot be reached, as of the last check; None if it can."""
        began = self._began
        if began is not None and time.monotonic() - began > _HANG_SECONDS:
            return f"the storage folder has not responded for {time.monotonic() - began:.0f} s"
        return self._problem

    def check(self) -> None:
        """Compare the storage with the database."""
        self._began = time.monotonic()
        before = self._problem
        try:
            storage_id.connect(self._database, self._storage)
            self._problem = None
        except StorageUnavailable as error:
            self._problem = str(error)
        except DBAPIError as error:
            log.warning("the storage is not checked: %s", error.orig)
        finally:
            self._began = None
        if self._problem is not None and self._problem != before:
            log.error("%s", self._problem)

    def run(self, stop: threading.Event) -> None:
        """Check until `stop`; for a thread of its own."""
        while not stop.wait(_WATCH_SECONDS):
            self.check()


def open_checkpoint(database: Database, storage: Storage, row: Checkpoint) -> BinaryIO:
    """Open the file of a checkpoint; set or take back its mark by what is seen.

    Raises:
        Gone: the file is damaged or missing.
        Unready: the storage cannot be reached.
    """
    try:
        file = storage.open(row.storage_key, row.sha256, row.size)
    except BadFile as flaw:
        raise Gone(f"checkpoint {row.id} is registered, but {flaw} ({_report(database, storage, row, flaw)})") from flaw
    except StorageUnavailable as error:
        raise Unready(str(error)) from error
    if row.flaw is not None:
        damage.report(database, storage, row, None)
    return file


def open_artifact(storage: Storage, row: Artifact) -> BinaryIO:
    """Open the file of an artifact.

    Raises:
        Gone: the file is damaged or missing.
        Unready: the storage cannot be reached.
    """
    try:
        return storage.open(row.storage_key, row.sha256, row.size)
    except BadFile as flaw:
        raise Gone(f"artifact {row.name} of job {row.job_id} is registered, but {flaw}") from flaw
    except StorageUnavailable as error:
        raise Unready(str(error)) from error


def read_artifact(storage: Storage, row: Artifact) -> bytes | None:
    """Return the bytes of an artifact, at most some MiB; None if they are not there as registered."""
    try:
        with storage.open(row.storage_key, row.sha256, row.size) as file:
            return file.read()
    except (BadFile, OSError) as error:
        log.warning("artifact %s of job %s cannot be read: %s", row.name, row.job_id, error)
        return None


def _report(database: Database, storage: Storage, row: Checkpoint, flaw: BadFile) -> str:
    """Mark the checkpoint; return what follows from the flaw, for people."""
    try:
        damage.report(database, storage, row, flaw)
    except StorageUnavailable as lost:
        return str(lost)
    return "it is marked, and no job uses it until the file is as registered again"
