"""Transitions that reconcilers make: preempt running jobs, unblock dependent ones, resume held ones."""

from __future__ import annotations

from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session, aliased

from jobs import preemption
from jobs.database import DEFAULT_PROJECT
from jobs.eligibility import WorkerFacts, fits_worker, is_held, is_lost, is_met, takes_jobs
from jobs.models import Dependency, Job, Project, Worker
from jobs.status import Reason, Status
from jobs.transitions.requests import request
from jobs.transitions.status_change import move


def preempt(session: Session) -> preemption.Preemption | None:
    """Request that running jobs give way to a waiting one, if necessary; reconcilers take turns at it."""
    session.execute(select(Project.id).where(Project.id == DEFAULT_PROJECT).with_for_update())
    chosen = preemption.choose(session)
    if chosen is not None:
        for job_id in chosen.job_ids:
            request(session, job_id, "preempt", job=chosen.for_job_id)
    return chosen


def has_blocked() -> ColumnElement[bool]:
    """Return the condition that any job waits for another one."""
    return exists().where(Job.status == Status.BLOCKED)


def unblock(session: Session) -> int:
    """Queue blocked jobs whose dependencies are met and fail those whose dependencies are lost; return their number."""
    needed = aliased(Job)
    needs = select(Dependency.job_id).join(needed, needed.id == Dependency.needs_job_id)
    own = needs.where(Dependency.job_id == Job.id)
    blocked = (
        select(Job.id).where(Job.status == Status.BLOCKED).order_by(Job.id)
    )  # every reconciler locks in the same order
    before = frozenset({Status.BLOCKED})
    failed = session.execute(blocked.where(exists(own.where(is_lost(needed))))).scalars().all()
    ready = session.execute(blocked.where(~exists(own.where(~is_met(needed))))).scalars().all()
    moved = [move(session, job_id, before, Status.QUEUED, "queued") for job_id in ready]
    message = "a job that it depends on failed or was cancelled"
    moved += [
        move(session, job_id, before, Status.FAILED, "failed", reason=Reason.UPSTREAM_FAILED, message=message)
        for job_id in failed
    ]
    return sum(moved)


_BATCH = 100  # jobs that one transaction resumes


def has_held() -> ColumnElement[bool]:
    """Return the condition that a job is paused until a worker has room or storage again, and its backoff is over."""
    return exists().where(is_held())


def resume_held(session: Session) -> int:
    """Queue such jobs, as far as a worker that takes jobs fits them; return their number."""
    num_moved = 0
    for worker in session.execute(select(Worker).where(takes_jobs()).order_by(Worker.id)).scalars().all():
        held = select(Job.id).where(is_held(), fits_worker(WorkerFacts.of(worker))).order_by(Job.id).limit(_BATCH)
        for job_id in session.execute(held.with_for_update(skip_locked=True)).scalars().all():
            message = "a worker has room and its storage again"
            before = frozenset({Status.PAUSED})
            num_moved += move(session, job_id, before, Status.QUEUED, "resumed", message=message, not_before=None)
    return num_moved
