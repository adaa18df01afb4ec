"""Preemption: the choice of running jobs that give way to a waiting job of higher priority.

- Only a job that was submitted as preemptible gives way, and only to a job of higher priority that fits its worker.
- No job gives way while a worker that fits the waiting job has room for it; for a job of several nodes, so many.
- No job gives way to a job that was itself preempted, so that two jobs never take turns.
- No job gives way in vain: to a job that could not start then, because a job ahead of it would get the devices, or the
  worker would keep them for one.
- In a pool, jobs give way to one waiting job at a time.  They are as few as suffice, all of one worker; of several
  choices those of lowest priority, and of equal ones the attempts that have run for the shortest time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from sqlalchemy import Select, and_, func, select
from sqlalchemy.orm import Session

from jobs import gangs
from jobs.devices import Free, closest, free_of, used_by
from jobs.eligibility import NEEDS, fits, takers
from jobs.models import Attempt, Event, Job
from jobs.queue import job_queue
from jobs.status import Reason, Status

REQUESTED = "preempt_requested"  # type of the event
_GIVES_WAY = (Job.status == Status.RUNNING, Job.preempt_requested_at.is_not(None))


@dataclass(frozen=True)
class Preemption:
    """The jobs that give way, and the one they give way to."""

    job_ids: tuple[str, ...]
    for_job_id: str


@dataclass(frozen=True)
class _Ahead:
    """A waiting job that cannot start and that no job gives way to, with the workers that could run it."""

    gpus: int
    nodes: int
    fitting: tuple[str, ...]


@dataclass(frozen=True)
class _Victim:
    """A running job that may give way."""

    priority: int
    ran_ms: int
    job_id: str
    size: int  # number of its devices, or one CPU slot

    @property
    def cost(self) -> tuple[int, int]:
        return self.priority, self.ran_ms


def choose(session: Session) -> Preemption | None:
    """Return the jobs that should give way now, or None."""
    running = _preemptible(session)
    if not running:
        return None
    workers = takers(session)
    free = free_of(session, workers)
    ahead: list[_Ahead] = []
    for waiting in _waiting(session, lowest=min(job.priority for job, *_ in running)):
        fitting = [worker.id for worker in workers if fits(worker, waiting)]
        with_room = [worker_id for worker_id in fitting if free[worker_id].holds(waiting.gpus)]
        num_missing = waiting.nodes - len(with_room)
        if num_missing <= 0 or len(fitting) < waiting.nodes:
            continue
        possible = []
        for worker_id in fitting if waiting.status_reason != Reason.PREEMPTED else ():
            if worker_id not in with_room:
                victims = _fewest(_victims(running, worker_id, waiting), free[worker_id], waiting)
                if victims and not _is_in_vain(session, victims, worker_id, waiting, ahead, free):
                    possible.append(victims)
        if possible and len(possible) >= num_missing:
            possible.sort(key=lambda victims: (len(victims), [each.cost for each in victims]))
            chosen = [each.job_id for victims in possible[:num_missing] for each in victims]
            return Preemption(tuple(dict.fromkeys(chosen)), waiting.id)
        ahead.append(_Ahead(waiting.gpus, waiting.nodes, tuple(fitting)))
    return None


def _is_in_vain(
    session: Session,
    victims: Sequence[_Victim],
    worker_id: str,
    waiting: Job,
    ahead: Sequence[_Ahead],
    free: Mapping[str, Free],
) -> bool:
    """Return whether the devices of the victims would not go to the waiting job.

    Of the jobs ahead of it, those that could then start get devices first.  The worker keeps its devices for the first
    one that could not, if it is among the closest ones to that job.
    """
    of_kind = [job for job in ahead if worker_id in job.fitting and bool(job.gpus) == bool(waiting.gpus)]
    if not of_kind:
        return False
    used = used_by(session, [victim.job_id for victim in victims])
    later = {each: part.with_(used.get(each)) for each, part in free.items()}
    for job in of_kind:
        its = {each: later[each] for each in job.fitting}
        if sum(part.holds(job.gpus) for part in its.values()) < job.nodes:
            return worker_id in closest(job.gpus, job.nodes, its)
        if later[worker_id].holds(job.gpus):
            later[worker_id] = later[worker_id].rest(job.gpus)
    return not later[worker_id].holds(waiting.gpus)


@dataclass(frozen=True)
class GivingWay:
    """A running job that has been requested to give way, and the job that it gives way to."""

    job_id: str
    name: str
    project_id: str
    for_job_id: str | None


def giving_way(session: Session, pool: str) -> list[GivingWay]:
    """Return the running jobs of a pool that give way."""
    requests = (
        select(Job.id, Job.name, Job.project_id, Event.data)
        .join(Event, Event.job_id == Job.id)
        .where(Job.pool == pool, *_GIVES_WAY, Event.type == REQUESTED)
        .order_by(Job.id, Event.seq)
    )
    rows = session.execute(requests)
    newest = {job_id: GivingWay(job_id, name, project, data.get("job")) for job_id, name, project, data in rows}
    return list(newest.values())


def _victims(running: Sequence[tuple[Job, Attempt, set[str]]], worker_id: str, waiting: Job) -> list[_Victim]:
    """Return the jobs of a worker whose end would help the waiting job, the cheapest first."""
    victims = [
        _Victim(job.priority, attempt.ran_ms or 0, job.id, max(1, job.gpus))
        for job, attempt, worker_ids in running
        if worker_id in worker_ids
        and job.priority < waiting.priority
        and bool(job.gpus) == bool(waiting.gpus)  # CPU slots and devices do not replace each other
    ]
    return sorted(victims, key=lambda victim: victim.cost)


def _fewest(victims: Sequence[_Victim], free: Free, waiting: Job) -> Sequence[_Victim]:
    """Return the fewest victims that suffice, the cheapest ones of several choices; none if all do not suffice."""
    missing = max(1, waiting.gpus - free.most_gpus) if waiting.gpus else 1
    largest = sorted((each.size for each in victims), reverse=True)
    for count in range(1, len(victims) + 1):
        if sum(largest[:count]) >= missing:
            choices = combinations(victims, count)  # in the order of their costs
            return next(chosen for chosen in choices if sum(each.size for each in chosen) >= missing)
    return ()


def _preemptible(session: Session) -> list[tuple[Job, Attempt, set[str]]]:
    """Return running jobs that may give way, with their workers, in pools where no job is giving way already."""
    result = []
    for job, attempt in session.execute(_running()).all():
        nodes = gangs.nodes_of(session, [attempt])[attempt.number] if job.nodes > 1 else []
        result.append((job, attempt, {attempt.worker_id, *(node.worker_id for node in nodes)}))
    return result


@cache
def _running() -> Select[Job, Attempt]:
    """Make the statement of each poll once, since its making takes as long as its execution."""
    leaving = select(Job.pool).where(*_GIVES_WAY)
    return (
        select(Job, Attempt)
        .join(Attempt, and_(Attempt.job_id == Job.id, Attempt.number == Job.attempt))
        .where(Job.status == Status.RUNNING, Job.preemptible, Job.pool.not_in(leaving))
    )


def _waiting(session: Session, lowest: int) -> Sequence[Job]:
    """Return due jobs above a priority, the first of each priority and needs, and the first that was preempted.

    A job that no worker can hold hides no other one: those with the same needs are looked at once.
    """
    was_preempted = func.coalesce(Job.status_reason, "") == Reason.PREEMPTED
    alike_by = (Job.priority, *NEEDS, was_preempted)
    queue = job_queue(session)
    place = func.row_number().over(partition_by=alike_by, order_by=queue.order).label("place")
    alike = select(Job.id, place).where(queue.is_ready(), Job.priority > lowest).subquery()
    firsts = select(Job).join(alike, alike.c.id == Job.id).where(alike.c.place == 1).order_by(*queue.order)
    return session.execute(firsts).scalars().all()
