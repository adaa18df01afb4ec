"""Devices that a worker keeps free for a large job, so that smaller jobs behind it do not delay it for ever.

A job that needs more devices than are free is passed over: smaller jobs behind it start.  Once a worker has passed over
the same job for a while, it gives its devices to no job behind it, except to those that end before the large job can
start.  Of several workers that fit, only the one that lacks the fewest devices does so.  For a job of several nodes so
many workers do so as it has nodes, unless the pool has too few that it could ever start on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from jobs import gangs
from jobs.devices import Free, closest, is_of_worker, used_by
from jobs.eligibility import WorkerFacts, fits, fits_worker, has_needs
from jobs.estimates import of_job
from jobs.models import Attempt, AttemptDevice, Job
from jobs.preemption import giving_way
from jobs.queue import job_queue
from jobs.status import Status

_MOST_ESTIMATED = 20  # jobs without a limit of time whose length a look estimates
_MARGIN = 1.25  # of an estimate from a similar run


@dataclass(frozen=True)
class PassedOver:
    """The first due job that fits a worker and needs more devices than it has free.

    Attributes:
        is_here: whether this worker lacks the fewest devices for it.
        is_urgent: whether running jobs give way to it, on this worker or on another one that it needs.
        seconds: expected time until it can start; infinite where unknown, and where jobs give way to it.
        gpus: that it needs on a worker; for none, the worker keeps its CPU slots.
    """

    job_id: str
    created_by: str | None
    priority: int
    queue_place: int
    is_here: bool
    is_urgent: bool
    seconds: float
    gpus: int = 1


def passed_over(session: Session, worker: WorkerFacts, free: Free) -> PassedOver | None:
    """Return the job that this worker may have to keep its free devices for.

    A job that running jobs give way to comes first: each of its workers keeps its devices until all have room.

    Args:
        session: a reading or writing transaction.
        worker: the worker.
        free: its free part as it knows it: a device is free in the database a moment before its run has exited.
    """
    is_passed = Job.gpus > free.most_gpus
    if worker.address is not None:
        is_passed = or_(and_(Job.nodes == 1, is_passed), has_needs(gangs.fillable(session, worker)))
    elif free.most_gpus >= worker.all_free.most_gpus:
        return None  # no job needs more than is free
    queue = job_queue(session)

    def first(*conditions: ColumnElement[bool]) -> Job | None:
        ids = queue.first(fits_worker(worker), is_passed, *conditions)
        return session.execute(select(Job).where(Job.id.in_(ids))).scalar_one_or_none()

    if leaving := giving_way(session, worker.pool):
        job = first(Job.id.in_({each.for_job_id for each in leaving}))
        ids = [each.job_id for each in leaving if job is not None and each.for_job_id == job.id]
        if job is not None and worker.id in _closest(session, job, ids):
            return _passed(job, is_here=True, is_urgent=True, seconds=math.inf)
    if (job := first()) is None:
        return None
    missing = _closest(session, job, mine={worker.id: free})
    if job.nodes == 1:
        seconds = _seconds_of(session, worker.id, job.gpus - free.most_gpus)
    else:
        times = (_seconds_of(session, each, count) for each, count in missing.items())
        seconds = max(times, default=0.0) if job.gpus else math.inf  # the end of jobs without devices is not looked at
    return _passed(job, is_here=worker.id in missing, is_urgent=False, seconds=seconds)


def _passed(job: Job, *, is_here: bool, is_urgent: bool, seconds: float) -> PassedOver:
    return PassedOver(job.id, job.created_by, job.priority, job.queue_place, is_here, is_urgent, seconds, job.gpus)


def _seconds_of(session: Session, worker_id: str, missing: int) -> float:
    """Return the time until a worker is expected to have so many more free devices; infinite where unknown."""
    if missing <= 0:
        return 0.0
    seconds = _seconds_until(missing, _ends(session, worker_id))
    return math.inf if seconds is None else seconds


def may_start(session: Session, held: PassedOver, fitting: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
    """Return the condition for jobs that may start while a worker keeps its devices for the held one.

    They are claimed before it, need other things, or end before it can start.

    Args:
        fitting: the conditions for jobs that fit the worker.
    """
    queue = job_queue(session)
    passes = or_(Job.id == held.job_id, queue.is_before(held), Job.gpus == 0 if held.gpus else Job.gpus > 0)
    if not math.isfinite(held.seconds):
        return passes
    unlimited = queue.first(*fitting, ~passes, Job.max_seconds.is_(None), count=_MOST_ESTIMATED)
    jobs = session.execute(select(Job).where(Job.id.in_(unlimited))).scalars()
    brief = [job.id for job in jobs if _estimated_seconds(session, job) <= held.seconds]
    return or_(passes, Job.max_seconds <= held.seconds, Job.id.in_(brief))


@dataclass(frozen=True)
class NextFree:
    """The expected time until a worker has one more free device.

    Attributes:
        seconds: by the jobs that report when they end; None if none does.
        may_be_sooner: whether other jobs hold devices and report no end.
    """

    seconds: float | None
    may_be_sooner: bool


def next_free(session: Session, worker_id: str) -> NextFree:
    """Return when a worker is expected to have one more free device."""
    ends = _ends(session, worker_id)
    return NextFree(_seconds_until(1, ends), any(seconds is None for seconds, _ in ends))


def _ends(session: Session, worker_id: str) -> list[tuple[float | None, int]]:
    """Return the remaining seconds of the jobs that hold devices of a worker, and the number of these devices."""
    return [(remaining(job), count) for job, count in _running(session, worker_id)]


def remaining(job: Job) -> float | None:
    """Return the seconds that a running job still takes by its own report; None if it has not reported any."""
    seconds = (job.progress or {}).get("eta_seconds")
    return float(seconds) if isinstance(seconds, int | float) else None


def _closest(
    session: Session, job: Job, leaving: Sequence[str] = (), mine: Mapping[str, Free] | None = None
) -> dict[str, int]:
    """Return the workers that keep their devices for the job, each with the number that it lacks.

    Args:
        leaving: ids of the running jobs that give way to the job; what they use counts as free for the choice.
        mine: the free part of the worker that asks, by its id, where it knows that better.
    """
    workers, room = gangs.room_of(session, job.pool)
    free = {worker.id: room[worker.id] for worker in workers if fits(worker, job)}
    free |= {each: part for each, part in (mine or {}).items() if each in free}
    used = used_by(session, leaving)
    later = {each: part.with_(used.get(each)) for each, part in free.items()}
    return closest(job.gpus, job.nodes, free, later)


def _running(session: Session, worker_id: str) -> list[tuple[Job, int]]:
    """Return the jobs that hold devices of a worker, each with their number."""
    held = (
        select(Job, AttemptDevice.device)
        .join(Attempt, and_(Attempt.job_id == Job.id, Attempt.number == Job.attempt))
        .join(AttemptDevice, and_(AttemptDevice.job_id == Job.id, AttemptDevice.attempt == Attempt.number))
        .where(is_of_worker(worker_id), Job.status == Status.RUNNING, AttemptDevice.released_at.is_(None))
    )
    counts: dict[str, tuple[Job, int]] = {}
    for job, _ in session.execute(held):
        counts[job.id] = (job, counts.get(job.id, (job, 0))[1] + 1)
    return list(counts.values())


def _seconds_until(missing: int, running: list[tuple[float | None, int]]) -> float | None:
    """Return when so many devices come free, of jobs with their remaining seconds and numbers of devices."""
    for seconds, count in sorted((seconds, count) for seconds, count in running if seconds is not None):
        missing -= count
        if missing <= 0:
            return seconds
    return None


def _estimated_seconds(session: Session, job: Job) -> float:
    """Return the longest that a job without a limit is expected to run; infinite where unknown."""
    like = (of_job(session, job) or {}).get("like")
    return _MARGIN * like["seconds"] if like and like["seconds"] else math.inf
