"""Garbage collection in the storage: files of deleted checkpoints, and of attempts and imports that died early."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice

from sqlalchemy.exc import DBAPIError

from jobs import checkpoints, weights
from jobs.database import Database
from jobs.storage import Storage

log = logging.getLogger(__name__)

_BATCH = 200  # jobs per query


def collect_all_garbage(database: Database, storage: Storage) -> None:
    """Remove the files of jobs and of imported weights that belong to no row, if the storage is there."""
    try:
        collect_garbage(database, storage, storage.job_ids())
        weights.collect(database, storage)
    except (OSError, DBAPIError) as error:
        log.warning("garbage is not removed: %s", error)


def collect_garbage(database: Database, storage: Storage, job_ids: Iterable[str]) -> None:
    """Remove the files of jobs that belong to no row; a file that cannot be removed now stays for the next call."""
    remaining = iter(job_ids)
    while batch := list(islice(remaining, _BATCH)):
        try:
            _collect(database, storage, batch)
        except (OSError, DBAPIError) as error:
            log.warning("garbage of %d jobs from %s on is not removed: %s", len(batch), batch[0], error)


def _collect(database: Database, storage: Storage, job_ids: list[str]) -> None:
    keys = [key for job_id in job_ids for key in storage.keys(job_id)]
    with database.read() as session:
        orphans = checkpoints.orphans(session, keys)
    for key in orphans:
        storage.delete(key)
    if orphans:
        log.info("removed %d files that belong to no row, %s first", len(orphans), orphans[0])
