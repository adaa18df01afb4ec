"""Attempts whose worker on this host died: what they left is delivered and they are ended, before any lease is over."""

from __future__ import annotations

import json
import logging
import socket
import time
from pathlib import Path

from sqlalchemy import select

from jobs import transitions
from jobs.database import Database
from jobs.errors import Superseded
from jobs.models import Attempt
from jobs.settings import Settings
from jobs.status import Reason
from jobs.storage import Storage
from worker.delivery import Delivery
from worker.process import marked
from worker.supervisor import RUN_FILE, clear, mark_of, owned

log = logging.getLogger(__name__)

_ORPHAN_SECONDS = 15.0  # a run ends by itself within 5 s of its supervisor


def settle(database: Database, storage: Storage, settings: Settings) -> None:
    """Go through the attempts' folders that no living supervisor owns."""
    for folder in sorted(settings.attempts_dir.glob("*/*")):
        try:
            with owned(folder) as is_ours:
                if is_ours and _is_of_this_host(folder):
                    _settle(database, storage, settings, folder)
                elif is_ours and _has_ended(database, folder):
                    clear(folder)
        except (FileNotFoundError, NotADirectoryError):  # another worker has just cleared it; no folder of ours
            continue


def _is_of_this_host(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / RUN_FILE).read_text())["host"] == socket.gethostname())
    except (OSError, ValueError, KeyError):
        return False  # a folder of nobody; whose attempt it was, observers find out


def _has_ended(database: Database, folder: Path) -> bool:
    """Whether the database knows the attempt and that it is over: then whoever made the folder needs it no more."""
    if not folder.name.isdigit():
        return False
    statement = select(Attempt.ended_at).where(Attempt.job_id == folder.parent.name, Attempt.number == int(folder.name))
    with database.read() as session:
        return session.execute(statement).scalar_one_or_none() is not None


def _settle(database: Database, storage: Storage, settings: Settings, folder: Path) -> None:
    job_id, number = folder.parent.name, int(folder.name)
    if _is_open(database, job_id, number):
        _wait_for_the_end(mark_of(job_id, number))
        delivery = Delivery(database, storage, settings, folder, job_id, number)
        try:
            while delivery.collect(is_over=True):
                delivery.send()
            if not delivery.has_ended:
                _end(database, settings, job_id, number)
            log.warning("job %s: attempt %d lost its worker; what it left is stored", job_id, number)
        except Superseded:
            delivery.discard()
    clear(folder)


def _is_open(database: Database, job_id: str, number: int) -> bool:
    statement = select(Attempt.ended_at).where(Attempt.job_id == job_id, Attempt.number == number)
    with database.read() as session:
        found = session.execute(statement).one_or_none()
    return found is not None and found.ended_at is None


def _wait_for_the_end(mark: str) -> None:
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while (left := list(marked(mark))) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in left:
        process.kill()


def _end(database: Database, settings: Settings, job_id: str, number: int) -> None:
    message = "its worker died"
    database.write(
        lambda session: transitions.end_attempt(
            session,
            job_id,
            number,
            "failed",
            Reason.WORKER_LOST,
            message,
            max_failures=settings.max_failures,
        )
    )
