"""Checkpoints whose file is damaged or missing: they are marked and reported; row and file are kept.

    intact ── it has other bytes ──────────────────────────────► damaged ─┐
      ▲   └── it is absent, and other files of its job are there ► missing ┤
      └───────────────────── the file is as registered again ──────────────┘

If none of a job's files is there, the storage may be incomplete.  Then nothing is marked (`LostFiles`), and the job is
held: it is tried again after a pause, while the worker takes other jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import BinaryIO

from sqlalchemy import func, update
from sqlalchemy.orm import Session

from jobs import checkpoints, transitions
from jobs.attempts import AttemptRef
from jobs.checked_files import BadFile, Missing
from jobs.checkpoints import CheckpointRef
from jobs.database import Database, now_ms
from jobs.events import record
from jobs.models import Checkpoint
from jobs.storage import Storage, StorageUnavailable


class LostFiles(StorageUnavailable):
    """None of a job's registered files is in the storage.

    Attributes:
        job_id: the job that the files are of.
    """

    def __init__(self, job_id: str, message: str) -> None:
        super().__init__(message)
        self.job_id = job_id


# --- what is seen of a file ----------------------------------------------------------------------------------------


def verify(
    database: Database, storage: Storage, checkpoint_id: str, digest_of: Callable[[BinaryIO], str] | None = None
) -> BadFile | None:
    """Read a checkpoint's file as a whole, and set or take back its mark; return its flaw, or None.

    Args:
        database, storage: the service.
        checkpoint_id: a registered checkpoint; nothing is done for a deleted one.
        digest_of: as `Storage.verify`.

    Raises:
        StorageUnavailable: the storage is absent or another one, or none of the job's files is there.
    """
    with database.read() as session:
        row = session.get(Checkpoint, checkpoint_id)
    if row is None or row.deleted_at is not None:
        return None
    flaw: BadFile | None = None
    try:
        storage.verify(row.storage_key, row.sha256, row.size, digest_of)
    except BadFile as error:
        flaw = error
    report(database, storage, row, flaw)
    return flaw


def report(database: Database, storage: Storage, row: Checkpoint, flaw: BadFile | None) -> None:
    """Set or take back the mark of a checkpoint whose file was read; its job gets a warning when the mark changes.

    Args:
        database, storage: the service.
        row: the checkpoint.
        flaw: of its file; None if the whole file has the registered bytes.

    Raises:
        LostFiles: the file is missing like all others of its job; nothing is marked.
    """
    if isinstance(flaw, Missing):
        check_not_lost(database, storage, row.job_id)
    database.write(lambda session: _change_mark(session, row.id, flaw))


def note(database: Database, checkpoint_id: str, flaw: BadFile | None) -> None:
    """Set or take back a mark as `report` does, when an operator says that the storage has all files that there are."""
    database.write(lambda session: _change_mark(session, checkpoint_id, flaw))


def check_not_lost(database: Database, storage: Storage, job_id: str) -> None:
    """Return if a registered file of the job is in the storage.

    Raises:
        LostFiles: none is.
    """
    with database.read() as session:
        keys = checkpoints.file_keys(session, job_id)
    if (message := loss(storage, job_id, keys)) is not None:
        raise LostFiles(job_id, message)


def loss(storage: Storage, job_id: str, keys: Sequence[str]) -> str | None:
    """Return a sentence if a job has registered files and none is in the storage; None otherwise."""
    for key in keys:
        try:
            storage.require(key)
        except (FileNotFoundError, ValueError):
            continue
        return None
    if not keys:
        return None
    num = "its only one" if len(keys) == 1 else f"all {len(keys)}"
    return (
        f"{storage.kind} has no registered file of job {job_id} ({num} missing), so it may be incomplete; "
        "bring the files back, or cancel the job"
    )


# --- what an attempt sees ------------------------------------------------------------------------------------------


def skip(session: Session, attempt: AttemptRef, bad: CheckpointRef, flaw: BadFile) -> CheckpointRef | None:
    """Mark the checkpoint that an attempt could not resume from, and return the next one to try.

    The job gets a warning event.

    Args:
        session: a writing transaction.
        attempt: the attempt that read it.
        bad: the checkpoint.
        flaw: of its file.

    Returns:
        An older checkpoint of the job, or the one that the job was started from; None when no good one is left.

    Raises:
        Superseded: the attempt has ended.
    """
    transitions.deliver(session, attempt, [])  # the fence
    _set_mark(session, bad.id, flaw)
    following = checkpoints.resume_point(session, attempt.job_id)
    consequence = f"the run resumes from step {following.step}" if following else "no good checkpoint is left"
    data = {"reason": _reason(flaw), "attempt": attempt.number, "checkpoint": bad.id, "step": bad.step}
    record(session, attempt.job_id, "warning", data | {"message": f"{bad.describe()}: {flaw}; {consequence}"})
    return following


def mark(session: Session, attempt: AttemptRef, checkpoint_id: str, flaw: BadFile | None) -> None:
    """Mark a checkpoint that an attempt has read, or take its mark back for the flaw None; as `report`.

    Raises:
        Superseded: the attempt has ended.
    """
    transitions.deliver(session, attempt, [])  # the fence
    _change_mark(session, checkpoint_id, flaw)


# --- the mark ------------------------------------------------------------------------------------------------------


def _change_mark(session: Session, checkpoint_id: str, flaw: BadFile | None) -> None:
    row = session.get(Checkpoint, checkpoint_id, with_for_update=True)
    if row is None or row.deleted_at is not None:  # meanwhile
        return
    before, after = row.flaw, _state(flaw)
    _set_mark(session, checkpoint_id, flaw)
    if before == after:
        return
    message = "its file is as registered again" if flaw is None else str(flaw)
    data = {"reason": _reason(flaw), "checkpoint": row.id, "step": row.step}
    record(session, row.job_id, "warning", data | {"message": f"{CheckpointRef.of(row).describe()}: {message}"})


def _set_mark(session: Session, checkpoint_id: str, flaw: BadFile | None) -> None:
    state = _state(flaw)
    damaged_at = func.coalesce(Checkpoint.damaged_at, now_ms()) if state == "damaged" else None
    missing_at = func.coalesce(Checkpoint.missing_at, now_ms()) if state == "missing" else None
    values = {"damaged_at": damaged_at, "missing_at": missing_at, "checked_at": now_ms()}
    session.execute(update(Checkpoint).where(Checkpoint.id == checkpoint_id).values(values))


def _state(flaw: BadFile | None) -> str | None:
    if flaw is None:
        return None
    return "missing" if isinstance(flaw, Missing) else "damaged"


def _reason(flaw: BadFile | None) -> str:
    return f"{_state(flaw) or 'restored'}_checkpoint"
