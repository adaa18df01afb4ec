"""What observers move on: jobs that wait for others, and urgent ones behind lesser ones."""

from __future__ import annotations

from sqlalchemy import exists, select
from sqlalchemy.orm import Session, aliased

from jobs import preemption
from jobs.eligibility import is_lost, is_met
from jobs.models import DEFAULT_PROJECT, Dependency, Job, Project
from jobs.status import Reason, Status
from jobs.transitions.guard import move
from jobs.transitions.requests import ask


def preempt(session: Session) -> preemption.Preemption | None:
    """Ask a running job to give way to a waiting one, where one has to; observers take turns at it."""
    session.execute(select(Project.id).where(Project.id == DEFAULT_PROJECT).with_for_update())
    chosen = preemption.choose(session)
    if chosen is not None:
        ask(session, chosen.job_id, "preempt", job=chosen.for_job_id)
    return chosen


def has_blocked(session: Session) -> bool:
    """Whether any job waits for another one."""
    return session.execute(select(Job.id).where(Job.status == Status.BLOCKED).limit(1)).first() is not None


def unblock(session: Session) -> int:
    """Move on every blocked job whose needed jobs have come far enough, or never will; how many moved."""
    needed = aliased(Job)
    needs = select(Dependency.job_id).join(needed, needed.id == Dependency.needs_job_id)
    own = needs.where(Dependency.job_id == Job.id)
    blocked = select(Job.id).where(Job.status == Status.BLOCKED).order_by(Job.id)  # all lock in the same order
    before = frozenset({Status.BLOCKED})
    failed = session.execute(blocked.where(exists(own.where(is_lost(needed))))).scalars().all()
    ready = session.execute(blocked.where(~exists(own.where(~is_met(needed))))).scalars().all()
    moved = [move(session, job_id, before, Status.QUEUED, "queued") for job_id in ready]
    message = "a job it waits for did not come far enough"
    moved += [
        move(session, job_id, before, Status.FAILED, "failed", reason=Reason.UPSTREAM_FAILED, message=message)
        for job_id in failed
    ]
    return sum(moved)
