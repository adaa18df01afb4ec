"""Removes stored files that no row claims: of deleted checkpoints, and of attempts that died before registering."""

from __future__ import annotations

import logging

from sqlalchemy.exc import DBAPIError

from jobs import retention
from jobs.database import Database
from jobs.storage import Storage

log = logging.getLogger(__name__)


def sweep(database: Database, storage: Storage, job_id: str) -> None:
    """Remove a job's orphans; what cannot be removed now is found again by the next sweep."""
    try:
        keys = list(storage.keys(job_id))
        with database.read() as session:
            orphans = retention.orphans(session, job_id, keys)
        for key in orphans:
            storage.delete(key)
        if orphans:
            log.info("job %s: removed %d files that belong to no checkpoint", job_id, len(orphans))
    except (OSError, DBAPIError) as error:
        log.warning("job %s: its storage was not swept: %s", job_id, error)
