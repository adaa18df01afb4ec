"""Recovery of attempts whose worker on this host died: their spools are delivered before any lease is over.

Only folders at the place where they were made are recovered.  A copy of a data folder holds copies of attempts whose
runs may be alive: their processes and rows belong to the original's workers.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from jobs import transitions
from jobs.attempts import AttemptRef
from jobs.database import Database, is_outage
from jobs.errors import Superseded
from jobs.fault_log import FaultLog
from jobs.models import Attempt, AttemptNode
from jobs.settings import Settings
from jobs.status import Reason
from jobs.storage import Storage, is_full
from wcl_core.protocol import RunFile
from worker.attempt_folder import clear, mark_of, owned, place_of
from worker.backoff import Backoff, renew_seconds
from worker.delivery import Delivery
from worker.exit_reason import reason_of
from worker.process import marked

log = logging.getLogger(__name__)

_ORPHAN_SECONDS = 15.0  # a run ends by itself within 5 s of its supervisor
_KILL_SECONDS = 10.0
_MAX_DIGITS = 9  # of an attempt's number


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
        _wait_for_orphans([mark_of(_attempt_of(folder), place_of(folder)) for folder in ours])
        are_gone()
        for folder in ours:
            with _only_this(folder):
                _recover(database, storage, settings, folder)
    for folder in folders:
        with _only_this(folder):
            _clear_ended(database, folder)


@contextmanager
def _only_this(folder: Path) -> Iterator[None]:
    """Let a folder cost only itself: its content is data of a run, and it may raise anything.

    Raises:
        DBAPIError: the database could not do its work, which concerns all folders.
    """
    try:
        yield
    except Exception as error:
        if is_outage(error):
            raise
        log.exception("%s cannot be recovered; its attempt ends with its lease", folder)


def _lock(folder: Path, held: ExitStack) -> bool:
    """Lock a folder until the stack is closed; return False when a supervisor owns it or has just cleared it."""
    try:
        return held.enter_context(owned(folder))
    except FileNotFoundError:
        return False
    except OSError as error:
        log.error("%s cannot be locked and is left alone: %s", folder, error.strerror or error)
        return False


def _is_of_this_host(folder: Path) -> bool:
    """Return whether a folder is of this host and no copy; the reconcilers end the attempts of all others."""
    try:
        run = RunFile.read(folder)
        is_of_attempt = AttemptRef(run.job_id, run.attempt, run.token) == _attempt_of(folder)
        is_original = run.place is not None and run.place.is_same(place_of(folder))
        return run.host == socket.gethostname() and is_of_attempt and is_original
    except (OSError, ValueError):
        return False  # it has no valid run file


def _attempt_of(folder: Path) -> AttemptRef:
    """Return the attempt that a folder is named after.

    Raises:
        ValueError: the folder is named after none.
    """
    name, _, _ = folder.name.partition(".")  # of a further node with its number
    number, _, token = name.partition("-")
    if not AttemptRef.is_folder(folder.name) or len(number) > _MAX_DIGITS:
        raise ValueError(f"{folder.name!r} is not the folder of an attempt")
    return AttemptRef(folder.parent.name, int(number), token or None)


def _clear_ended(database: Database, folder: Path) -> None:
    """Remove a folder whose attempt is in the database and has ended."""
    try:
        has_ended = folder.exists() and _is_open(database, _attempt_of(folder)) is False
    except ValueError:
        return
    if has_ended:
        with ExitStack() as held:
            if _lock(folder, held):
                clear(folder)


def _recover(database: Database, storage: Storage, settings: Settings, folder: Path) -> None:
    attempt = _attempt_of(folder)
    if _is_open(database, attempt) and "." in folder.name:
        with suppress(Superseded):  # the first node delivers the records
            if not _has_ended_well(database, attempt, int(folder.name.rpartition(".")[2])):
                _end(database, settings, attempt, Reason.WORKER_LOST, "the worker of a node died")
    elif _is_open(database, attempt):
        delivery = Delivery(database, storage, settings, folder, attempt)
        try:
            reason, message = _deliver(delivery, settings)
            if not delivery.has_ended:
                _end(database, settings, attempt, reason, message)
            log.warning("%s lost its worker; its remaining records are stored", attempt)
        except Superseded:
            delivery.discard()
    clear(folder)


def _deliver(delivery: Delivery, settings: Settings) -> tuple[Reason, str]:
    """Deliver all that the storage takes, and return reason and message of an attempt without an `end` record.

    Raises:
        Superseded: the attempt has ended.
        DBAPIError: the database could not do its work.
    """
    backoff = Backoff(settings.lease_seconds)
    try:
        while delivery.collect(is_over=True):
            delivery.send()
            if delivery.obstacle is not None:
                if is_full(delivery.obstacle):
                    return Reason.DISK_FULL, "its worker died, and the storage is full"
                time.sleep(backoff.pause())
            delivery.is_storing(renew_seconds(settings.lease_seconds))
    except Superseded:
        raise
    except Exception as error:  # a record that cannot be stored ends its attempt, as under a living supervisor
        if is_outage(error):
            raise
        log.exception("%s: its records cannot be stored", delivery.folder)
        return reason_of(error)
    return Reason.WORKER_LOST, "its worker died"


def _is_open(database: Database, attempt: AttemptRef) -> bool | None:
    """Return whether an attempt is open; None when the database has no such attempt."""
    statement = select(Attempt.ended_at).where(attempt.is_row())
    with database.read() as session:
        row = session.execute(statement).one_or_none()
    return None if row is None else row.ended_at is None


def _has_ended_well(database: Database, attempt: AttemptRef, node: int) -> bool:
    """Return whether the ranks of a node have ended well, so that its attempt goes on without its worker."""
    with database.read() as session:
        row = session.get(AttemptNode, (attempt.job_id, attempt.number, node))
        return row is not None and row.ended_at is not None


def _wait_for_orphans(marks: list[str]) -> None:
    """Wait until the runs of these attempts have ended; kill those that take too long."""
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while (alive := list(marked(*marks))) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, _KILL_SECONDS)


def _end(database: Database, settings: Settings, attempt: AttemptRef, reason: Reason, message: str) -> None:
    database.write(
        lambda session: transitions.end_attempt(
            session, attempt, "failed", reason, message, max_failures=settings.max_failures
        )
    )
