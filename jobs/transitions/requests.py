"""Requests of users: a waiting job changes at once, a running job gets the time of the request on its row."""

from __future__ import annotations

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jobs import access, activity
from jobs.database import now_ms
from jobs.errors import Conflict, NotFound
from jobs.events import record
from jobs.models import Job
from jobs.status import Reason, Status
from jobs.transitions.status_change import lock, move

_WAITING = frozenset({Status.BLOCKED, Status.QUEUED, Status.PAUSED})


def cancel(session: Session, job_id: str) -> None:
    """Cancel a waiting job at once, or request it of a running one; a second request changes nothing.

    Raises:
        NotFound: there is no such job.
        Forbidden: it is of another key.
        Conflict: it has ended.
    """
    lock(session, job_id)
    _check_owner(session, job_id)
    cancel_below(session, job_id)


def cancel_below(session: Session, job_id: str) -> None:
    """Cancel a job because the sweep or the job that it belongs to is cancelled or deleted, also one of another key.

    Raises:
        NotFound, Conflict: as `cancel`.
    """
    lock(session, job_id)
    is_moved = move(session, job_id, _WAITING, Status.CANCELLED, "cancelled", reason=Reason.USER)
    if is_moved or request(session, job_id, "cancel"):
        _note(session, job_id, "cancel")


def pause(session: Session, job_id: str) -> None:
    """Pause a queued job at once, or request a running one to save and stop.

    Raises:
        NotFound: there is no such job.
        Forbidden: it is of another key.
        Conflict: it is neither queued nor running.
    """
    lock(session, job_id)
    _check_owner(session, job_id)
    is_moved = move(session, job_id, frozenset({Status.QUEUED}), Status.PAUSED, "paused", reason=Reason.USER)
    if is_moved or request(session, job_id, "pause"):
        _note(session, job_id, "pause")


def resume(session: Session, job_id: str) -> None:
    """Queue a paused job again.

    Raises:
        NotFound: there is no such job.
        Forbidden: it is of another key.
        Conflict: it is not paused.
    """
    _check_owner(session, job_id)
    if not move(session, job_id, frozenset({Status.PAUSED}), Status.QUEUED, "resumed", not_before=None):
        raise _refusal(session, job_id, "resume")
    _note(session, job_id, "resume")


def request(session: Session, job_id: str, verb: str, **data: str) -> bool:
    """Record a request on a running job; return False for a second one, which changes nothing.

    Args:
        session: a writing transaction.
        verb: cancel, pause or preempt.
        **data: of the event.

    Raises:
        NotFound: there is no such job.
        Conflict: it is not running.
    """
    column = {
        "cancel": Job.cancel_requested_at,
        "pause": Job.pause_requested_at,
        "preempt": Job.preempt_requested_at,
    }[verb]
    statement = (
        update(Job)
        .where(Job.id == job_id, Job.status == Status.RUNNING, column.is_(None))
        .values({column: now_ms()})
        .returning(Job.id)
    )
    is_new = session.execute(statement, execution_options={"synchronize_session": False}).scalar_one_or_none()
    if is_new:
        record(session, job_id, f"{verb}_requested", data)
    elif session.execute(select(Job.status).where(Job.id == job_id)).scalar_one_or_none() != Status.RUNNING:
        raise _refusal(session, job_id, verb)
    return is_new is not None


def _check_owner(session: Session, job_id: str) -> None:
    row = session.execute(select(Job.created_by).where(Job.id == job_id)).one_or_none()
    if row is not None:
        access.check_owner(session, row.created_by, f"job {job_id}")


def _note(session: Session, job_id: str, verb: str) -> None:
    name = session.execute(select(Job.name).where(Job.id == job_id)).scalar_one()
    activity.note(session, f"job.{verb}", job_id, name)


def _refusal(session: Session, job_id: str, verb: str) -> NotFound | Conflict:
    status = session.execute(select(Job.status).where(Job.id == job_id)).scalar_one_or_none()
    if status is None:
        return NotFound(f"there is no job {job_id!r}")
    return Conflict(f"cannot {verb} a job that is {status}")
