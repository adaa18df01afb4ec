"""Attempts whose worker on this host died: what they left is delivered and they are ended, before any lease is over."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from jobs import transitions
from jobs.database import Database, is_outage
from jobs.errors import Superseded
from jobs.models import Attempt
from jobs.settings import Settings
from jobs.status import Reason
from jobs.storage import Storage, is_full
from worker.attempt_folder import RUN_FILE, clear, mark_of, owned
from worker.backoff import Backoff, renew_seconds
from worker.delivery import Delivery
from worker.process import marked

log = logging.getLogger(__name__)

_ORPHAN_SECONDS = 15.0  # a run ends by itself within 5 s of its supervisor
_KILL_SECONDS = 10.0


def settle_all(database: Database, storage: Storage, settings: Settings, are_gone: Callable[[], None]) -> None:
    """`settle`, again and again until the database has taken everything; for a thread of its own."""
    backoff = Backoff(settings.lease_seconds)
    while True:
        try:
            settle(database, storage, settings, are_gone)
            return
        except DBAPIError as error:
            if not is_outage(error):
                log.exception("what is left of earlier attempts is left to their lease")
                return
            log.warning("what is left of earlier attempts is not settled yet: %s", error.orig)
        time.sleep(backoff.pause())


def settle(
    database: Database, storage: Storage, settings: Settings, are_gone: Callable[[], None] = lambda: None
) -> None:
    """Go through the attempts' folders that no living supervisor owns.

    Args:
        are_gone: called once no orphaned run of this host is left, and before anything is delivered, which may take
            long: nobody's work has to wait for that.
    """
    folders = sorted(settings.attempts_dir.glob("*/*"))
    with ExitStack() as held:
        ours = [folder for folder in folders if _is_of_this_host(folder) and _take(folder, held)]
        _wait_for_the_ends([mark_of(*_attempt_of(folder)) for folder in ours])
        are_gone()
        for folder in ours:
            _settle(database, storage, settings, folder)
    for folder in folders:
        if _has_ended(database, folder):
            with ExitStack() as held:
                if _take(folder, held):
                    clear(folder)


def _take(folder: Path, held: ExitStack) -> bool:
    """Whether it is ours until the stack is closed; no living supervisor's is, and none that has just been cleared."""
    try:
        return held.enter_context(owned(folder))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_of_this_host(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / RUN_FILE).read_text())["host"] == socket.gethostname())
    except (OSError, ValueError, KeyError):
        return False  # a folder of nobody; whose attempt it was, observers find out


def _attempt_of(folder: Path) -> tuple[str, int]:
    return folder.parent.name, int(folder.name)


def _has_ended(database: Database, folder: Path) -> bool:
    """Whether the database knows the attempt and that it is over: then whoever made the folder needs it no more."""
    return folder.exists() and folder.name.isdigit() and _is_open(database, *_attempt_of(folder)) is False


def _settle(database: Database, storage: Storage, settings: Settings, folder: Path) -> None:
    job_id, number = _attempt_of(folder)
    if _is_open(database, job_id, number):
        delivery = Delivery(database, storage, settings, folder, job_id, number)
        try:
            reason = _deliver(delivery, settings)
            if not delivery.has_ended:
                _end(database, settings, job_id, number, reason)
            log.warning("job %s: attempt %d lost its worker; what it left is stored", job_id, number)
        except Superseded:
            delivery.discard()
        except (OSError, ValueError):  # a record that is none, a folder that cannot be read: the others still can
            log.exception("job %s: attempt %d cannot be settled and is left to its lease", job_id, number)
            return
    clear(folder)


def _deliver(delivery: Delivery, settings: Settings) -> Reason:
    """Deliver whatever the storage takes; what the attempt has ended of, unless its own last word says so."""
    backoff = Backoff(settings.lease_seconds)
    while delivery.collect(is_over=True):
        delivery.send()
        if delivery.obstacle is not None:
            if is_full(delivery.obstacle):
                return Reason.DISK_FULL
            time.sleep(backoff.pause())
        delivery.is_storing(renew_seconds(settings.lease_seconds))
    return Reason.WORKER_LOST


def _is_open(database: Database, job_id: str, number: int) -> bool | None:
    """None when the database knows no such attempt."""
    statement = select(Attempt.ended_at).where(Attempt.job_id == job_id, Attempt.number == number)
    with database.read() as session:
        found = session.execute(statement).one_or_none()
    return None if found is None else found.ended_at is None


def _wait_for_the_ends(marks: list[str]) -> None:
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while (left := list(marked(*marks))) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, _KILL_SECONDS)


def _end(database: Database, settings: Settings, job_id: str, number: int, reason: Reason) -> None:
    message = "its worker died" if reason is Reason.WORKER_LOST else "its worker died, and the storage is full"
    database.write(
        lambda session: transitions.end_attempt(
            session, job_id, number, "failed", reason, message, max_failures=settings.max_failures
        )
    )
