"""The reason why a job waits, and its place in the queue; computed at each read, never stored."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from jobs.datasets import State, states, why_absent
from jobs.devices import free_of
from jobs.eligibility import has_dataset, has_gpus, is_due, is_met, supports_spec_version, takes_jobs
from jobs.holding import next_free
from jobs.models import Dataset, Dependency, Job, Worker
from jobs.status import HELD, Status


class Cause(StrEnum):
    """The cause; clients treat it as an open string."""

    DEPENDENCY = "dependency"  # a dependency is not met
    PAUSED = "paused"  # by a user, or until a user has fixed something
    BACKING_OFF = "backing_off"  # its last attempt failed, and its backoff is not over
    NO_WORKER = "no_worker"
    WORKERS_UNABLE = "workers_unable"  # its pool has workers, and none of them can take jobs
    TOO_FEW_GPUS = "too_few_gpus"
    DATASET_ABSENT = "dataset_absent"
    DATASET_BEING_READ = "dataset_being_read"
    SPEC_VERSION_UNKNOWN = "spec_version_unknown"
    JOBS_AHEAD = "jobs_ahead"
    WORKERS_BUSY = "workers_busy"  # it is the next job
    ABOUT_TO_START = "about_to_start"


@dataclass(frozen=True)
class Waiting:
    """The cause for programs and a message for people.

    Attributes:
        cause: the first one that applies.
        message: one sentence without a full stop.
        position: in the queue of its pool, from 1; None for a job that is not in the queue.
        until: end of the backoff, in milliseconds of the database's clock.
        needs: ids of the jobs whose dependency is not met.
    """

    cause: Cause
    message: str
    position: int | None = None
    until: int | None = None
    needs: tuple[str, ...] = ()


def explain(session: Session, job: Job) -> Waiting | None:
    """Return why the job waits; None when it runs or has ended."""
    if job.status == Status.PAUSED:
        if job.status_reason in HELD:
            return Waiting(Cause.PAUSED, "it continues by itself once a worker has room and its storage again")
        return Waiting(Cause.PAUSED, "it is paused; resume it to continue")
    if job.status == Status.BLOCKED:
        return _on_dependencies(session, job)
    if job.status != Status.QUEUED:
        return None
    if session.execute(select(Job.id).where(Job.id == job.id, is_due())).first() is None:
        return Waiting(
            Cause.BACKING_OFF, "its last attempt failed; the next one starts after a backoff", until=job.not_before
        )
    ahead = _num_ahead(session, job)
    cause, message = _on_workers(session, job, ahead)
    return Waiting(cause, message, position=ahead + 1)


def _on_dependencies(session: Session, job: Job) -> Waiting:
    statement = (
        select(Job.id, Job.name, Job.status, Dependency.until)
        .join(Dependency, Dependency.needs_job_id == Job.id)
        .where(Dependency.job_id == job.id, ~is_met(Job))
        .order_by(Job.id)
    )
    needs = session.execute(statement).all()
    unmet = ", ".join(f"the {need.until} of {need.name}, which is {need.status}" for need in needs)
    message = f"it waits for {unmet}" if needs else "its dependencies are met; it is about to be queued"
    return Waiting(Cause.DEPENDENCY, message, needs=tuple(need.id for need in needs))


def _num_ahead(session: Session, job: Job) -> int:
    """Return the number of due jobs of its pool that are claimed before it: a range of the index of claims."""
    before = or_(Job.priority > job.priority, and_(Job.priority == job.priority, Job.queue_place < job.queue_place))
    statement = select(func.count()).where(is_due(), Job.pool == job.pool, before)
    return session.execute(statement).scalar_one()


def _on_workers(session: Session, job: Job, ahead: int) -> tuple[Cause, str]:
    """Return the first requirement that no worker meets, or else the place in the queue."""
    workers = list(session.execute(select(Worker).where(Worker.pool == job.pool, takes_jobs())).scalars())
    if not workers:
        return _on_no_worker(session, job)
    most = max(worker.gpus for worker in workers)
    if not (workers := [worker for worker in workers if has_gpus(worker, job)]):
        return Cause.TOO_FEW_GPUS, f"it needs {job.gpus} GPUs; no worker of the pool {job.pool} has more than {most}"
    if not (workers := [worker for worker in workers if has_dataset(worker, job)]):
        return _on_dataset(session, job)
    if not (workers := [worker for worker in workers if supports_spec_version(worker, job)]):
        return Cause.SPEC_VERSION_UNKNOWN, f"no worker that fits supports version {job.spec_version} of the spec"
    free = free_of(session, workers)
    num_with_room = sum(free[worker.id].holds(job.gpus) for worker in workers)
    cause, message = _on_its_turn(num_with_room, ahead)
    if job.gpus and not num_with_room:
        closest = max(workers, key=lambda worker: len(free[worker.id].devices))
        message = (f"{message}; " if ahead else "") + _on_devices(session, job, closest, len(free[closest.id].devices))
    return cause, message


def _on_devices(session: Session, job: Job, worker: Worker, num_free: int) -> str:
    """Return which devices a job waits for, and when the worker that has the most free ones has one more."""
    needed = f"{job.gpus} free GPUs on one machine" if job.gpus > 1 else "a free GPU"
    seconds = next_free(session, worker.id, 1)
    if seconds is None:
        following = "and when the next comes free is not known yet"
    else:
        following = f"the next comes free in {_about(seconds)}"
    return f"it waits for {needed}; {worker.name} has {num_free or 'none'}, {following}"


def _about(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    return f"about {minutes} min" if minutes < 90 else f"about {round(minutes / 60)} h"


def _on_dataset(session: Session, job: Job) -> tuple[Cause, str]:
    """Return why no worker has the version of the dataset that the job pins."""
    state = states(session).get(job.dataset_name)
    if state is not None and state.state is State.BEING_READ:
        return Cause.DATASET_BEING_READ, f"{job.dataset_name} is being read: {state.share:.0%}"
    newest = session.execute(select(Dataset.digest).where(Dataset.name == job.dataset_name)).scalar_one_or_none()
    detail = f"no worker of the pool {job.pool} with enough GPUs has this version of {job.dataset_name}"
    if newest and newest != job.dataset_digest:
        return Cause.DATASET_ABSENT, f"{detail}; the dataset has changed since, and a clone starts on the new version"
    reason = why_absent(session, job.dataset_name)
    return Cause.DATASET_ABSENT, f"{detail}; {reason}" if reason else detail


def _on_no_worker(session: Session, job: Job) -> tuple[Cause, str]:
    statement = select(Worker).where(Worker.pool == job.pool, Worker.is_live, Worker.unable.is_not(None))
    unable = session.execute(statement.order_by(Worker.id.desc()).limit(1)).scalar_one_or_none()
    if unable is None:
        return Cause.NO_WORKER, f"no worker of the pool {job.pool} is running"
    message = f"no worker of the pool {job.pool} can take jobs; {unable.name}: {unable.unable_message}"
    return Cause.WORKERS_UNABLE, message


def _on_its_turn(num_with_room: int, ahead: int) -> tuple[Cause, str]:
    if num_with_room > ahead:
        return Cause.ABOUT_TO_START, "an idle worker is about to claim it"
    if ahead:
        return Cause.JOBS_AHEAD, f"{ahead} {'job is' if ahead == 1 else 'jobs are'} ahead of it"
    return Cause.WORKERS_BUSY, "it is the next job; every worker that fits is busy"
