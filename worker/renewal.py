"""Keeps an attempt alive while its supervisor is held up by files: copied, hashed, synced, listed on a slow storage."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

from jobs import transitions
from jobs.database import Database
from jobs.errors import Superseded
from jobs.settings import Settings

log = logging.getLogger(__name__)


def renew_seconds(settings: Settings) -> float:
    """Pause between two renewals: several fit into a lease, so one that fails costs nothing."""
    return min(3.0, settings.lease_seconds / 6)


@contextmanager
def renewed(database: Database, settings: Settings, job_id: str, number: int) -> Iterator[None]:
    """Renew an attempt from a thread of its own for as long as the block takes, but no longer than a run may be silent.

    A callback between the chunks of a copy would not do: one call that syncs a large file may outlast a lease.  Whether
    the attempt was superseded meanwhile, the block's next write is told by its own fence.

    Args:
        database, settings: the service.
        job_id, number: the attempt.
    """
    is_over = threading.Event()
    arguments = (database, settings, job_id, number, is_over)
    threading.Thread(target=_renew, args=arguments, daemon=True, name="renewal").start()
    try:
        yield
    finally:
        is_over.set()  # not joined: a renewal on its way may wait for an absent database, and does no harm later


def _renew(database: Database, settings: Settings, job_id: str, number: int, is_over: threading.Event) -> None:
    gives_up_at = time.monotonic() + settings.stall_seconds
    while not is_over.wait(renew_seconds(settings)):
        if time.monotonic() > gives_up_at:
            log.error("job %s: the storage holds attempt %d up for too long", job_id, number)
            return
        try:
            database.write(lambda session: transitions.deliver(session, job_id, number, []))
        except Superseded:
            return
        except DBAPIError as error:
            log.warning("job %s: its attempt is not renewed: %s", job_id, error.orig)
