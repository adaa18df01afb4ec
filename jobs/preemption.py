"""Preemption: the choice of a running job that gives way to a waiting job of higher priority.

- Only a job that was submitted as preemptible gives way, and only to a job of higher priority that fits its worker.
- No job gives way while an idle worker fits the waiting job.
- No job gives way to a job that was itself preempted, so that two jobs never take turns.
- At most one job of a pool gives way at a time: the one of lowest priority, and of equal ones the attempt
  that has run for the shortest time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from jobs.eligibility import fits, is_due, takes_jobs
from jobs.models import Attempt, Job, Worker
from jobs.status import Reason, Status

_MAX_WAITING = 100  # the first ones of the queue; jobs behind them wait in any case


@dataclass(frozen=True)
class Preemption:
    """The job that gives way, and the one it gives way to."""

    job_id: str
    for_job_id: str


def choose(session: Session) -> Preemption | None:
    running = _preemptible(session)
    if not running:
        return None
    workers = list(session.execute(select(Worker).where(takes_jobs())).scalars())
    for waiting in _waiting(session, lowest=min(job.priority for job, _ in running)):
        fitting = {worker.id for worker in workers if fits(worker, waiting)}
        if any(worker.state == "idle" for worker in workers if worker.id in fitting):
            continue
        victims = [
            (job, attempt)
            for job, attempt in running
            if attempt.worker_id in fitting and job.priority < waiting.priority
        ]
        if victims:
            cheapest, _ = min(victims, key=lambda pair: (pair[0].priority, pair[1].ran_ms or 0))
            return Preemption(cheapest.id, waiting.id)
    return None


def _preemptible(session: Session) -> list[tuple[Job, Attempt]]:
    """Return running jobs that may give way, in pools where no job is giving way already."""
    giving_way = select(Job.pool).where(Job.status == Status.RUNNING, Job.preempt_requested_at.is_not(None))
    statement = (
        select(Job, Attempt)
        .join(Attempt, and_(Attempt.job_id == Job.id, Attempt.number == Job.attempt))
        .where(Job.status == Status.RUNNING, Job.preemptible, Job.pool.not_in(giving_way))
    )
    return [(job, attempt) for job, attempt in session.execute(statement)]


def _waiting(session: Session, lowest: int) -> Sequence[Job]:
    """Return the first due jobs above a priority that were not themselves preempted."""
    statement = (
        select(Job)
        .where(
            is_due(),
            Job.priority > lowest,
            func.coalesce(Job.status_reason, "") != Reason.PREEMPTED,
        )
        .order_by(Job.priority.desc(), Job.queue_place)
        .limit(_MAX_WAITING)
    )
    return session.execute(statement).scalars().all()
