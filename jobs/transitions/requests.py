"""What people ask: a job that waits obeys at once, a running one is asked by a time on its row."""

from __future__ import annotations

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jobs.database import now_ms
from jobs.errors import Conflict, NotFound
from jobs.events import record
from jobs.models import Job
from jobs.status import Reason, Status
from jobs.transitions.guard import lock, move

_WAITING = frozenset({Status.BLOCKED, Status.QUEUED, Status.PAUSED})


def cancel(session: Session, job_id: str) -> None:
    """Cancel a waiting job at once; ask a running one. Asking twice changes nothing.

    Raises:
        NotFound, Conflict: no such job; it has ended.
    """
    lock(session, job_id)
    if move(session, job_id, _WAITING, Status.CANCELLED, "cancelled", reason=Reason.USER):
        return
    ask(session, job_id, "cancel")


def pause(session: Session, job_id: str) -> None:
    """Hold a queued job at once; ask a running one to save and stop.

    Raises:
        NotFound, Conflict: no such job; it is neither queued nor running.
    """
    lock(session, job_id)
    if move(session, job_id, frozenset({Status.QUEUED}), Status.PAUSED, "paused", reason=Reason.USER):
        return
    ask(session, job_id, "pause")


def resume(session: Session, job_id: str) -> None:
    """Queue a paused job again.

    Raises:
        NotFound, Conflict: no such job; it is not paused.
    """
    if not move(session, job_id, frozenset({Status.PAUSED}), Status.QUEUED, "resumed", not_before=None):
        raise _refusal(session, job_id, "resume")


def ask(session: Session, job_id: str, verb: str, **why: str) -> None:
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
    asked = session.execute(statement, execution_options={"synchronize_session": False}).scalar_one_or_none()
    if asked:
        record(session, job_id, f"{verb}_requested", why)
    elif session.execute(select(Job.status).where(Job.id == job_id)).scalar_one_or_none() != Status.RUNNING:
        raise _refusal(session, job_id, verb)


def _refusal(session: Session, job_id: str, verb: str) -> NotFound | Conflict:
    status = session.execute(select(Job.status).where(Job.id == job_id)).scalar_one_or_none()
    if status is None:
        return NotFound(f"there is no job {job_id}")
    return Conflict(f"cannot {verb} a job that is {status}")
