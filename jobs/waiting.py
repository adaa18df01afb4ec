"""The reason why a job waits, its place in the queue, and the request that a running job has yet to carry out.

All are computed at each read, and never stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from jobs.database import project_of
from jobs.datasets import State, states, why_absent
from jobs.devices import Free, free_of, most_gpus, working_of
from jobs.eligibility import Needs, fits, has_dataset, has_gpus, is_due, is_met, may_take_jobs, supports_spec_version
from jobs.holding import next_free, remaining
from jobs.models import Attempt, AttemptNode, Dataset, Dependency, Job, Key, Worker
from jobs.preemption import giving_way
from jobs.queue import Ahead, Use, job_queue, num_ahead, num_passing
from jobs.shared_reads import WorkerRow, live_workers, once
from jobs.status import HELD, Reason, Status
from jobs.transitions.outcomes import seconds_left
from wcl_core.text import counted


class Cause(StrEnum):
    """The cause; clients treat it as an open string."""

    DEPENDENCY = "dependency"  # a dependency is not met
    PAUSED = "paused"  # by a user, or until a user has fixed something
    BACKING_OFF = "backing_off"  # its last attempt failed, and its backoff is not over
    NO_WORKER = "no_worker"
    WORKERS_UNABLE = "workers_unable"  # its pool has workers, and none of them can take jobs
    TOO_FEW_GPUS = "too_few_gpus"
    TOO_FEW_WORKERS = "too_few_workers"  # for a job of several nodes
    DATASET_ABSENT = "dataset_absent"
    DATASET_BEING_READ = "dataset_being_read"
    SPEC_VERSION_UNKNOWN = "spec_version_unknown"
    KEY_LIMIT = "key_limit"  # the jobs of its key use as many devices as they may
    PROJECT_LIMIT = "project_limit"  # those of its project use as many GPUs as they may
    JOBS_AHEAD = "jobs_ahead"
    WORKERS_BUSY = "workers_busy"  # it is the next job
    ABOUT_TO_START = "about_to_start"
    PREEMPTING = "preempting"  # running jobs give way to it
    WORKERS_DRAINING = "workers_draining"  # the workers that could run it take no further job


# No worker of today can run the job, so its place in the queue would say nothing.
_WITHOUT_PLACE = (
    Cause.TOO_FEW_GPUS,
    Cause.TOO_FEW_WORKERS,
    Cause.DATASET_ABSENT,
    Cause.SPEC_VERSION_UNKNOWN,
    Cause.KEY_LIMIT,
    Cause.PROJECT_LIMIT,
)
_WITHOUT_START = (*_WITHOUT_PLACE, Cause.NO_WORKER, Cause.WORKERS_UNABLE)

# The end of each phase of a run, for which a request waits.  A cancel waits for no step and no checkpoint.
_ENDS = {
    "prepare": "stopping the preparation of the dataset",
    "load": "stopping the loading of data",
    "compile": "stopping the compilation",
    "evaluate": "ending the measurement",
}
_SAVES = {"train": "finishing a step, then saving", "save": "saving the checkpoint"}
_MOST_NAMED = 3
_BRIEF_SECONDS = 30.0  # shown as less than a minute


@dataclass(frozen=True)
class Waiting:
    """The cause for programs and a message for people.

    Attributes:
        cause: the first one that applies.
        message: one sentence without a full stop.
        position: in the queue of its pool, from 1; None for a job that is not in the queue, or that no worker can run.
        is_estimate: whether the position is rounded, as it is beyond the first `jobs.queue.MOST_COUNTED`.
        until: end of the backoff, in milliseconds of the database's clock.
        needs: ids of the jobs whose dependency is not met.
    """

    cause: Cause
    message: str
    position: int | None = None
    until: int | None = None
    needs: tuple[str, ...] = ()
    is_estimate: bool = False

    @property
    def place(self) -> str | None:
        """The position as text."""
        return None if self.position is None else f"{'about ' if self.is_estimate else ''}{self.position:,}"

    @property
    def can_start(self) -> bool:
        """Whether the job starts by waiting alone, with the workers of today."""
        return self.cause not in _WITHOUT_START


def explain(session: Session, job: Job) -> Waiting | None:
    """Return why the job waits; None when it runs or has ended."""
    return explain_all(session, [job]).get(job.id)


def explain_all(session: Session, jobs: Sequence[Job]) -> dict[str, Waiting]:
    """Return why jobs wait, by id, without those that run or have ended.

    The number of statements does not depend on the number of jobs.
    """
    needs = _unmet_needs(session, [job.id for job in jobs if job.status == Status.BLOCKED])
    not_before = {job.id for job in jobs if job.status == Status.QUEUED and job.not_before is not None}
    if not_before:
        not_before -= set(session.execute(select(Job.id).where(Job.id.in_(not_before), is_due())).scalars())
    reasons = {}
    for job in jobs:
        if job.status == Status.PAUSED:
            reasons[job.id] = _on_pause(job)
        elif job.status == Status.BLOCKED:
            reasons[job.id] = _on_dependencies(needs[job.id])
        elif job.id in not_before:
            reasons[job.id] = _on_backoff(job)
        elif job.status == Status.QUEUED:
            reasons[job.id] = _on_queue(session, job, is_one_of_many=len(jobs) > 1)
    return reasons


def _on_pause(job: Job) -> Waiting:
    if job.status_reason in HELD:
        return Waiting(Cause.PAUSED, "it continues by itself once a worker has room and all its files again")
    return Waiting(Cause.PAUSED, "it is paused; resume it to continue")


def _on_backoff(job: Job) -> Waiting:
    failed = job.status_message if job.status_reason == Reason.NODE_LATE else "its last attempt failed"
    return Waiting(Cause.BACKING_OFF, f"{failed}; the next attempt starts after a backoff", until=job.not_before)


def _on_queue(session: Session, job: Job, *, is_one_of_many: bool) -> Waiting:
    ahead = num_ahead(session, job, is_one_of_many=is_one_of_many)
    cause, message = _on_preemption(session, job) or _on_limit(session, job) or _on_workers(session, job, ahead)
    if cause is Cause.JOBS_AHEAD and (passing := num_passing(session, job, is_one_of_many=is_one_of_many)).count:
        message += f"; {passing} of these {'is' if passing.count == 1 else 'are'} later, of keys with less recent use"
    elif cause is Cause.JOBS_AHEAD and job_queue(session).rank_of(job.created_by or "") > 0:
        message += "; keys with less recent use come first, and that order changes while jobs run"
    if cause in _WITHOUT_PLACE:
        return Waiting(cause, message)
    is_estimate = ahead.is_estimate
    return Waiting(cause, message, position=ahead.count + (not is_estimate), is_estimate=is_estimate)


def pending(session: Session, job: Job) -> str | None:
    """Return the request that a running job has yet to carry out, with the work that it waits for; None without one."""
    if job.status != Status.RUNNING:
        return None
    ends = _ENDS | _SAVES
    if job.cancel_requested_at is not None:
        request, ends = "cancelling", _ENDS
    elif job.pause_requested_at is not None:
        request = "pausing"
    elif job.preempt_requested_at is not None:
        request = "giving way to a job of higher priority"
    elif job.max_seconds is not None and seconds_left(session, job.id) <= 0:
        request = f"ending at its limit of {job.max_seconds} s"
    else:
        first = select(Attempt.worker_id).where(Attempt.job_id == job.id, Attempt.number == job.attempt)
        nodes = select(AttemptNode.worker_id).where(
            AttemptNode.job_id == job.id, AttemptNode.attempt == job.attempt, AttemptNode.ended_at.is_(None)
        )
        drains = select(Worker.name).where(
            or_(Worker.id.in_(first), Worker.id.in_(nodes)), Worker.drain_requested_at.is_not(None)
        )
        worker = session.execute(drains.order_by(Worker.name).limit(1)).scalar_one_or_none()
        if worker is None:
            return None
        request = f"returning to the queue, because {worker} drains"
    return f"{request}: {ends.get((job.progress or {}).get('phase', ''), 'stopping the run')}"


def _on_preemption(session: Session, job: Job) -> tuple[Cause, str] | None:
    """Return which running jobs give way to the job; None if none does."""
    if not any(use.devices for use in job_queue(session).uses.values()):
        return None  # no job runs
    leaving = once(session, ("giving way", job.pool), lambda: giving_way(session, job.pool))
    own = project_of(session)
    names = [
        each.name if own in (None, each.project_id) else "a job of another project"
        for each in leaving
        if each.for_job_id == job.id
    ]
    if not names:
        return None
    verb = "gives" if len(names) == 1 else "give"
    return Cause.PREEMPTING, f"{_listed(names)} {verb} way to it: a checkpoint is saved, then it starts"


def _on_limit(session: Session, job: Job) -> tuple[Cause, str] | None:
    """Return that the key or the project of a job uses as much as it may; None if both have room for the job."""
    use, needed = job_queue(session).use_of(job.created_by), max(1, job.gpus * job.nodes)
    if use.limit is None or use.room is None or use.room >= needed:
        return _on_quota(job_queue(session).use_of_project(job.project_id), job.gpus * job.nodes)
    named = select(Key.name).where(Key.id == job.created_by)
    name = once(session, ("name of the key", job.created_by), lambda: session.execute(named).scalar_one())
    limit = f"the jobs of the key {name} may use {counted(use.limit, 'device')} at once"
    if needed > use.limit:
        return Cause.KEY_LIMIT, f"{limit}, and it needs {needed}; an administrator can raise the limit"
    return Cause.KEY_LIMIT, f"{limit}, and use {use.devices}; it starts when one has ended"


def _on_quota(use: Use, needed: int) -> tuple[Cause, str] | None:
    """Return that the project of a job uses its GPUs; None if it may use those of the job, too."""
    if use.limit is None or use.room is None or needed <= max(0, use.room):
        return None
    if needed > use.limit:
        limit = f"its project may use {counted(use.limit, 'GPU')} at once, and it needs {needed}"
        return Cause.PROJECT_LIMIT, f"{limit}; an administrator of all projects can raise the limit"
    if use.devices >= use.limit:
        return Cause.PROJECT_LIMIT, f"its project uses its {counted(use.limit, 'GPU')}; it starts when some are free"
    uses = f"its project uses {use.devices} of its {counted(use.limit, 'GPU')}, and it needs {needed}"
    return Cause.PROJECT_LIMIT, f"{uses}; it starts when enough are free"


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _unmet_needs(session: Session, job_ids: Sequence[str]) -> dict[str, list[Any]]:
    """Return the jobs that blocked jobs still need, by the id of the blocked one."""
    by_job: dict[str, list[Any]] = {job_id: [] for job_id in job_ids}
    statement = (
        select(Dependency.job_id, Job.id, Job.name, Job.status, Dependency.until)
        .join(Dependency, Dependency.needs_job_id == Job.id)
        .where(Dependency.job_id.in_(job_ids), ~is_met(Job))
        .order_by(Job.id)
    )
    for row in session.execute(statement) if job_ids else ():
        by_job[row.job_id].append(row)
    return by_job


def _on_dependencies(needs: Sequence[Any]) -> Waiting:
    unmet = ", ".join(f"the {need.until} of {need.name}, which is {need.status}" for need in needs)
    message = f"it waits for {unmet}" if needs else "its dependencies are met; it is about to be queued"
    return Waiting(Cause.DEPENDENCY, message, needs=tuple(need.id for need in needs))


def _on_workers(session: Session, job: Job, ahead: Ahead) -> tuple[Cause, str]:
    """Return the first requirement that no worker meets, or else the place in the queue."""
    workers = [worker for worker in live_workers(session) if worker.pool == job.pool and may_take_jobs(worker)]
    if not workers:
        return _on_draining(session, job) or _on_no_worker(session, job)
    if job.nodes > 1:
        return _on_nodes(session, job, workers, ahead)
    most = max(most_gpus(working_of(worker)) for worker in workers)
    if not (workers := [worker for worker in workers if has_gpus(worker, job)]):
        message = (
            f"it needs {counted(job.gpus, 'GPU')}; no worker of the pool {job.pool} has more than {most} for one job"
        )
        return _on_draining(session, job) or (Cause.TOO_FEW_GPUS, message)
    if not (workers := [worker for worker in workers if has_dataset(worker, job)]):
        return _on_dataset(session, job)
    if not (workers := [worker for worker in workers if supports_spec_version(worker, job)]):
        message = f"no worker that fits supports version {job.spec_version} of the spec; it needs a newer worker"
        return Cause.SPEC_VERSION_UNKNOWN, f"{message}: upgrade one of the pool {job.pool}"
    free, rivals = _free(session), _rivals(job, workers, ahead)
    most_gpus_of_one = max([job.gpus, *(needs.gpus for needs in rivals)])
    num_places = sum(_num_places(worker, free[worker.id], most_gpus_of_one) for worker in workers)
    num_rivals = ahead.count if ahead.is_estimate else sum(rivals.values())
    cause, message = _on_its_turn(num_places, ahead, num_rivals)
    if job.gpus and not any(free[worker.id].holds(job.gpus) for worker in workers):
        message = (f"{message}; " if num_rivals else "") + _on_devices(session, job, workers, free)
    elif not job.gpus and not any(free[worker.id].cpu_slots for worker in workers):
        message += _next_end(session, workers)
    return cause, message


def _rivals(job: Job, workers: Sequence[WorkerRow], ahead: Ahead) -> dict[Needs, int]:
    """Return the jobs ahead that need GPUs, or CPU slots, as the job does, and that one of its workers can run."""
    return {
        needs: count
        for needs, count in ahead.by_needs.items()
        if count and bool(needs.gpus) == bool(job.gpus) and any(fits(worker, needs) for worker in workers)
    }


def _num_places(worker: WorkerRow, free: Free, gpus: int) -> int:
    """Return how many jobs that need so many GPUs a worker can start now."""
    num_places = free.most_gpus // gpus if gpus else free.cpu_slots
    runs_one = worker.takes_one or worker.cpu_slots is None
    return min(num_places, 1) if runs_one else num_places


def _free(session: Session) -> dict[str, Free]:
    """Return the free part of each live worker that takes jobs; the first call of a transaction reads it."""

    def read() -> dict[str, Free]:
        return free_of(session, [worker for worker in live_workers(session) if may_take_jobs(worker)])

    return once(session, "free", read)


def _on_nodes(session: Session, job: Job, workers: list[WorkerRow], ahead: Ahead) -> tuple[Cause, str]:
    """Return which workers a job of several nodes lacks."""
    lacks = {worker.name: reason for worker in workers if (reason := _why_no_node(worker, job)) is not None}
    able = [worker for worker in workers if worker.name not in lacks]
    if len(able) < job.nodes:
        message = f"it needs {job.nodes} workers at once; the pool {job.pool} has {len(able) or 'none'} for it"
        shown = [f"{name} {reason}" for name, reason in sorted(lacks.items())[:_MOST_NAMED]]
        return Cause.TOO_FEW_WORKERS, ", and ".join([message, *shown])
    free = _free(session)
    busy = [worker.name for worker in able if not free[worker.id].holds(job.gpus)]
    num_with_room = len(able) - len(busy)
    num_rivals = ahead.count if ahead.is_estimate else sum(_rivals(job, able, ahead).values())
    if num_with_room >= job.nodes:
        cause, message = _on_its_turn(num_with_room // job.nodes, ahead, num_rivals)
        if cause is Cause.ABOUT_TO_START:
            first = min((worker for worker in able if worker.name not in busy), key=lambda worker: worker.id)
            message = f"{first.name} is about to start it on {job.nodes} workers"
        return cause, message
    cause, message = _on_its_turn(0, ahead, num_rivals)
    each = f" with {job.gpus} free GPUs each" if job.gpus else ""
    needed = f"it waits for {job.nodes} workers at once{each}; {num_with_room or 'none'} of {len(able)} has room"
    return cause, (f"{message}; " if num_rivals else "") + f"{needed}, and it lacks {', '.join(busy[:_MOST_NAMED])}"


def _why_no_node(worker: WorkerRow, job: Job) -> str | None:
    """Return what a worker lacks to be a node of a job, as a clause."""
    if worker.address is None:
        return "names no address (WCL_NODE_ADDRESS)"
    if not has_gpus(worker, job):
        return f"has {worker.gpus} GPUs, not {job.gpus}"
    if not has_dataset(worker, job):
        return f"does not have this version of {job.dataset_name}"
    return None if supports_spec_version(worker, job) else f"is too old for version {job.spec_version} of the spec"


def _on_draining(session: Session, job: Job) -> tuple[Cause, str] | None:
    """Return which workers could run the job if they did not drain; None if there are none."""
    held = [
        each for each in live_workers(session) if each.drain_requested_at is not None or each.cordoned_at is not None
    ]
    workers = [worker for worker in held if worker.pool == job.pool and has_gpus(worker, job)]
    if not (names := sorted(worker.name for worker in workers)):
        return None
    ends = "drains and takes" if len(names) == 1 else "drain and take"
    if all(worker.drain_requested_at is None for worker in workers):
        ends = "is cordoned and takes" if len(names) == 1 else "are cordoned and take"
    message = f"{_listed(names)} could run it, but {ends} no further job"
    return Cause.WORKERS_DRAINING, f"{message}; it waits for another worker of the pool {job.pool}"


def _next_end(session: Session, workers: Sequence[WorkerRow]) -> str:
    """Return the job without GPUs that ends first on these workers, as the end of a sentence; "" where unknown."""

    def read() -> list[tuple[str, str, float]]:
        statement = (
            select(Attempt.worker_id, Job)
            .join(Job, and_(Attempt.job_id == Job.id, Attempt.number == Job.attempt))
            .where(Attempt.ended_at.is_(None), Job.status == Status.RUNNING, Job.gpus == 0)
        )
        ends = ((worker, job.name, remaining(job)) for worker, job in session.execute(statement))
        return [(worker, name, seconds) for worker, name, seconds in ends if seconds is not None]

    ids = {worker.id for worker in workers}
    ends = [(seconds, name) for worker, name, seconds in once(session, "ends", read) if worker in ids]
    if not ends:
        return ""
    seconds, name = min(ends)
    return f"; {name} ends in {_about(seconds)}"


def _on_devices(session: Session, job: Job, workers: Sequence[WorkerRow], free: Mapping[str, Free]) -> str:
    """Return which devices a job waits for, and when each worker that could hold it has one more, the closest first."""
    needed = f"{job.gpus} free GPUs on one machine" if job.gpus > 1 else "a free GPU"
    closest = sorted(workers, key=lambda worker: (-free[worker.id].most_gpus, worker.name))
    each = [_on_device(session, worker, free[worker.id].most_gpus) for worker in closest[:_MOST_NAMED]]
    rest = len(closest) - _MOST_NAMED
    return "; ".join([f"it waits for {needed}", *each]) + (f"; {rest} more have no more free" if rest > 0 else "")


def _on_device(session: Session, worker: WorkerRow, num_free: int) -> str:
    expected = once(session, ("next free device", worker.id), lambda: next_free(session, worker.id))
    if expected.seconds is None:
        following = "and when the next comes free is not known yet"
    else:
        following = f"the next comes free in {_about(expected.seconds)}"
        if expected.may_be_sooner and expected.seconds >= _BRIEF_SECONDS:
            following += " or sooner"  # a job that reports no end may end first
    return f"{worker.name} has {num_free or 'none'}, {following}"


def _about(seconds: float) -> str:
    if seconds < _BRIEF_SECONDS:
        return "less than a minute"
    minutes = max(1, round(seconds / 60))
    return f"about {minutes} min" if minutes < 90 else f"about {round(minutes / 60)} h"


def _on_dataset(session: Session, job: Job) -> tuple[Cause, str]:
    """Return why no worker has the version of the dataset that the job pins."""
    state = once(session, "states of datasets", lambda: states(session)).get(job.dataset_name)
    if state is not None and state.state is State.BEING_READ:
        message = f"the dataset {job.dataset_name} is being read: {state.share:.0%}"
        return Cause.DATASET_BEING_READ, f"{message}; jobs on other datasets may start before it"
    digests = once(session, "digests", lambda: dict(session.execute(select(Dataset.name, Dataset.digest)).all()))
    newest = digests.get(job.dataset_name)
    able = " with enough GPUs" if job.gpus else ""
    detail = f"no worker of the pool {job.pool}{able} has this version of {job.dataset_name}"
    if newest and newest != job.dataset_digest:
        message = f"{detail}, in its folder or its cache; the dataset has changed since"
        return Cause.DATASET_ABSENT, f"{message}: restore its files, or clone the job, which then uses the new version"
    reason = why_absent(session, job.dataset_name)
    return Cause.DATASET_ABSENT, f"{detail}; {reason}" if reason else detail


def _on_no_worker(session: Session, job: Job) -> tuple[Cause, str]:
    workers = [each for each in live_workers(session) if each.pool == job.pool and each.unable is not None]
    unable = max(workers, key=lambda worker: worker.id, default=None)
    if unable is None:
        return Cause.NO_WORKER, f"no worker of the pool {job.pool} is running"
    message = f"no worker of the pool {job.pool} can take jobs; {unable.name}: {unable.unable_message}"
    return Cause.WORKERS_UNABLE, message


def _on_its_turn(num_places: int, ahead: Ahead, num_rivals: int) -> tuple[Cause, str]:
    """Return the cause of a job that workers fit.

    Args:
        num_places: number of jobs that these workers can start now.
        ahead: the jobs ahead.
        num_rivals: number of those ahead that take such places.
    """
    if num_places > num_rivals:
        return Cause.ABOUT_TO_START, "an idle worker is about to claim it"
    if num_rivals:
        return Cause.JOBS_AHEAD, f"{ahead} {'job is' if ahead.count == 1 else 'jobs are'} ahead of it"
    busy = "every worker that fits is busy"
    if ahead.count:
        return Cause.WORKERS_BUSY, f"{busy}; the jobs ahead of it wait for something else"
    return Cause.WORKERS_BUSY, f"it is the next job; {busy}"
