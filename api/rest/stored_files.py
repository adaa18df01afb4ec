"""Registered files for responses: the only way in which bytes of the storage leave the server.

Every byte was compared with the registered digest since the file was last touched.  A checkpoint that differs gets a
mark.
"""

from __future__ import annotations

import logging
from typing import BinaryIO

from api.http.problems import Gone, Unready
from jobs import damage
from jobs.checked_files import BadFile
from jobs.database import Database
from jobs.models import Artifact, Checkpoint
from jobs.storage import Storage, StorageUnavailable
from wcl_core.text import without_paths

log = logging.getLogger(__name__)


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
        return without_paths(str(lost))
    return "it is marked, and no job uses it until the file is as registered again"
