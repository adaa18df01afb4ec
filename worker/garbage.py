"""Removes stored files that no row claims: of deleted checkpoints, and of attempts that died before registering."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice

from sqlalchemy.exc import DBAPIError

from jobs import checkpoints
from jobs.database import Database
from jobs.storage import Storage

log = logging.getLogger(__name__)

_BATCH = 200  # jobs that one question to the database is about


def sweep(database: Database, storage: Storage, job_ids: Iterable[str]) -> None:
    """Remove the orphans of jobs; what cannot be removed now is found again by the next sweep."""
    remaining = iter(job_ids)
    while batch := list(islice(remaining, _BATCH)):
        try:
            _sweep(database, storage, batch)
        except (OSError, DBAPIError) as error:
            log.warning("the storage of %d jobs from %s on was not swept: %s", len(batch), batch[0], error)


def _sweep(database: Database, storage: Storage, job_ids: list[str]) -> None:
    keys = [key for job_id in job_ids for key in storage.keys(job_id)]
    with database.read() as session:
        orphans = checkpoints.orphans(session, keys)
    for key in orphans:
        storage.delete(key)
    if orphans:
        log.info("removed %d files that belong to no checkpoint, %s first", len(orphans), orphans[0])
