"""Recovery of attempts whose worker on this host died: their spools are delivered before any lease is over."""

from __future__ import annotations

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
from jobs.fault_log import FaultLog
from jobs.models import Attempt
from jobs.settings import Settings
from jobs.status import Reason
from jobs.storage import Storage, is_full
from wcl_core.protocol import RunFile
from worker.attempt_folder import clear, mark_of, owned
from worker.backoff import Backoff, renew_seconds
from worker.delivery import Delivery
from worker.process import marked

log = logging.getLogger(__name__)

_ORPHAN_SECONDS = 15.0  # a run ends by itself within 5 s of its supervisor
_KILL_SECONDS = 10.0


def recover_all(database: Database, storage: Storage, settings: Settings, are_gone: Callable[[], None]) -> None:
    """Repeat `recover` until the database has taken everything; for a thread of its own."""
    backoff = Backoff(settings.lease_seconds)
    faults = FaultLog(log, "the recovery of earlier attempts of this host")
    while True:
        try:
            recover(database, storage, settings, are_gone)
            faults.succeeded()
            return
        except DBAPIError as error:
            if not is_outage(error):
                log.exception("earlier attempts of this host cannot be recovered; each ends with its lease")
                return
            faults.failed(error)
        time.sleep(backoff.pause())


def recover(
    database: Database, storage: Storage, settings: Settings, are_gone: Callable[[], None] = lambda: None
) -> None:
    """Deliver, end and clear the attempts whose folders no living supervisor owns.

    Args:
        database, storage, settings: the service.
        are_gone: called once no orphaned run of this host is left.  Deliveries, which may take long, come after it, so
            that new jobs do not wait for them.
    """
    folders = sorted(settings.attempts_dir.glob("*/*"))
    with ExitStack() as held:
        ours = [folder for folder in folders if _is_of_this_host(folder) and _lock(folder, held)]
        _wait_for_orphans([mark_of(*_attempt_of(folder)) for folder in ours])
        are_gone()
        for folder in ours:
            _recover(database, storage, settings, folder)
    for folder in folders:
        if _has_ended(database, folder):
            with ExitStack() as held:
                if _lock(folder, held):
                    clear(folder)


def _lock(folder: Path, held: ExitStack) -> bool:
    """Lock a folder until the stack is closed; return False when a supervisor owns it or has just cleared it."""
    try:
        return held.enter_context(owned(folder))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_of_this_host(folder: Path) -> bool:
    try:
        return RunFile.read(folder).host == socket.gethostname()
    except (OSError, ValueError):
        return False  # without a valid run file the reconcilers end the attempt


def _attempt_of(folder: Path) -> tuple[str, int]:
    return folder.parent.name, int(folder.name)


def _has_ended(database: Database, folder: Path) -> bool:
    """Return whether the attempt of a folder is in the database and has ended, so that the folder is of no use."""
    return folder.exists() and folder.name.isdigit() and _is_open(database, *_attempt_of(folder)) is False


def _recover(database: Database, storage: Storage, settings: Settings, folder: Path) -> None:
    job_id, number = _attempt_of(folder)
    if _is_open(database, job_id, number):
        delivery = Delivery(database, storage, settings, folder, job_id, number)
        try:
            reason = _deliver(delivery, settings)
            if not delivery.has_ended:
                _end(database, settings, job_id, number, reason)
            log.warning("job %s: attempt %d lost its worker; its remaining records are stored", job_id, number)
        except Superseded:
            delivery.discard()
        except (OSError, ValueError):  # the other folders can still be recovered
            log.exception("job %s: attempt %d cannot be recovered and ends with its lease", job_id, number)
            return
    clear(folder)


def _deliver(delivery: Delivery, settings: Settings) -> Reason:
    """Deliver all that the storage takes, and return the reason of an attempt without an `end` record."""
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
    """Return whether an attempt is open; None when the database has no such attempt."""
    statement = select(Attempt.ended_at).where(Attempt.job_id == job_id, Attempt.number == number)
    with database.read() as session:
        row = session.execute(statement).one_or_none()
    return None if row is None else row.ended_at is None


def _wait_for_orphans(marks: list[str]) -> None:
    """Wait until the runs of these attempts have ended; kill those that take too long."""
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while (alive := list(marked(*marks))) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, _KILL_SECONDS)


def _end(database: Database, settings: Settings, job_id: str, number: int, reason: Reason) -> None:
    message = "its worker died" if reason is Reason.WORKER_LOST else "its worker died, and the storage is full"
    database.write(
        lambda session: transitions.end_attempt(
            session, job_id, number, "failed", reason, message, max_failures=settings.max_failures
        )
    )
