"""Requests of users: a waiting job changes at once, a running job gets the time of the request on its row."""

from __future__ import annotations

from sqlalchemy import select, update
from sqlalchemy.orm import Session

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
        Conflict: it has ended.
    """
    lock(session, job_id)
    if move(session, job_id, _WAITING, Status.CANCELLED, "cancelled", reason=Reason.USER):
        return
    request(session, job_id, "cancel")


def pause(session: Session, job_id: str) -> None:
    """Pause a queued job at once, or request a running one to save and stop.

    Raises:
        NotFound: there is no such job.
        Conflict: it is neither queued nor running.
    """
    lock(session, job_id)
    if move(session, job_id, frozenset({Status.QUEUED}), Status.PAUSED, "paused", reason=Reason.USER):
        return
    request(session, job_id, "pause")


def resume(session: Session, job_id: str) -> None:
    """Queue a paused job again.

    Raises:
        NotFound: there is no such job.
        Conflict: it is not paused.
    """
    if not move(session, job_id, frozenset({Status.PAUSED}), Status.QUEUED, "resumed", not_before=None):
        raise _refusal(session, job_id, "resume")


def request(session: Session, job_id: str, verb: str, **data: str) -> None:
    """Record a request on a running job; a second one changes nothing.

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


def _refusal(session: Session, job_id: str, verb: str) -> NotFound | Conflict:
    status = session.execute(select(Job.status).where(Job.id == job_id)).scalar_one_or_none()
    if status is None:
        return NotFound(f"there is no job {job_id}")
    return Conflict(f"cannot {verb} a job that is {status}")
