"""Why a job is not running yet, and how many are taken before it; derived at each look, stored nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from jobs.eligibility import has_dataset, has_gpus, is_due, is_met, supports_spec_version, takes_jobs
from jobs.models import Dependency, Job, Worker
from jobs.status import Status


class Cause(StrEnum):
    """To clients an open string."""

    DEPENDENCY = "dependency"  # another job has not come far enough
    PAUSED = "paused"  # held by a person, or until a person has put something right
    BACKING_OFF = "backing_off"  # its last attempt failed a moment ago
    NO_WORKER = "no_worker"
    TOO_FEW_GPUS = "too_few_gpus"
    DATASET_ABSENT = "dataset_absent"
    SPEC_VERSION_UNKNOWN = "spec_version_unknown"
    JOBS_AHEAD = "jobs_ahead"
    WORKERS_BUSY = "workers_busy"  # it is the next one
    ABOUT_TO_START = "about_to_start"


@dataclass(frozen=True)
class Waiting:
    """Why, for programs and for people.

    `position` in the queue of its pool begins at 1; `until` is a time of the database in milliseconds; `needs` are ids
    of jobs.  All are null or empty where they mean nothing.
    """

    cause: Cause
    message: str
    position: int | None = None
    until: int | None = None
    needs: tuple[str, ...] = ()


def explain(session: Session, job: Job) -> Waiting | None:
    """Why the job waits; None when it runs or has ended."""
    if job.status == Status.PAUSED:
        return Waiting(Cause.PAUSED, "it is held until somebody resumes it")
    if job.status == Status.BLOCKED:
        return _for_others(session, job)
    if job.status != Status.QUEUED:
        return None
    if session.execute(select(Job.id).where(Job.id == job.id, is_due())).first() is None:
        return Waiting(Cause.BACKING_OFF, "its last attempt failed; it waits before the next one", until=job.not_before)
    ahead = _num_ahead(session, job)
    cause, message = _for_workers(session, job, ahead)
    return Waiting(cause, message, position=ahead + 1)


def _for_others(session: Session, job: Job) -> Waiting:
    statement = (
        select(Job.id, Job.name, Job.status, Dependency.until)
        .join(Dependency, Dependency.needs_job_id == Job.id)
        .where(Dependency.job_id == job.id, ~is_met(Job))
        .order_by(Job.id)
    )
    needs = session.execute(statement).all()
    told = ", ".join(f"the {need.until} of {need.name}, which is {need.status}" for need in needs)
    message = f"it waits for {told}" if needs else "what it waited for is there; it is queued in a moment"
    return Waiting(Cause.DEPENDENCY, message, needs=tuple(need.id for need in needs))


def _num_ahead(session: Session, job: Job) -> int:
    """How many due jobs of its pool are taken before it: a range of the index of claims."""
    before = or_(Job.priority > job.priority, and_(Job.priority == job.priority, Job.id < job.id))
    statement = select(func.count()).where(is_due(), Job.pool == job.pool, before)
    return session.execute(statement).scalar_one()


def _for_workers(session: Session, job: Job, ahead: int) -> tuple[Cause, str]:
    """What the workers lack, asked one thing after the other; else who is before it."""
    workers = list(session.execute(select(Worker).where(Worker.pool == job.pool, takes_jobs())).scalars())
    if not workers:
        return Cause.NO_WORKER, f"no worker of the pool {job.pool} runs"
    most = max(worker.gpus for worker in workers)
    if not (workers := [worker for worker in workers if has_gpus(worker, job)]):
        return Cause.TOO_FEW_GPUS, f"it needs {job.gpus} GPUs; no worker of the pool {job.pool} has more than {most}"
    if not (workers := [worker for worker in workers if has_dataset(worker, job)]):
        detail = f"no worker of the pool {job.pool} that is large enough has this version of {job.dataset_name}"
        return Cause.DATASET_ABSENT, detail
    if not (workers := [worker for worker in workers if supports_spec_version(worker, job)]):
        return Cause.SPEC_VERSION_UNKNOWN, f"no worker that fits knows version {job.spec_version} of specs yet"
    return _for_its_turn(workers, ahead)


def _for_its_turn(workers: Sequence[Worker], ahead: int) -> tuple[Cause, str]:
    num_idle = sum(worker.state == "idle" for worker in workers)
    if num_idle > ahead:
        return Cause.ABOUT_TO_START, "a free worker takes it in a moment"
    if ahead:
        return Cause.JOBS_AHEAD, f"{ahead} {'job is' if ahead == 1 else 'jobs are'} taken before it"
    return Cause.WORKERS_BUSY, "it is the next one; every worker that fits is busy"
