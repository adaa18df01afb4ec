"""Gangs: the workers that run one job of several nodes together.

A gang starts as a whole, in one transaction, or not at all.  It is one attempt: the worker with the lowest id claims
the job for all.  It is the first node, which delivers the records and ends the attempt.  The others find their row in
`attempt_nodes`, run their part of the ranks, and renew that row.

A worker that keeps its free part for a job announces that in its row.  No gang that is behind this job takes that part.
Of the jobs that workers keep something for, the first one in the queue waits for no other, so they never block each
other.  An announcement counts while its worker takes jobs and its job is due.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, true
from sqlalchemy.orm import Session

from jobs.attempts import AttemptRef
from jobs.devices import Free, free_of, is_node_of
from jobs.eligibility import (
    NEEDS,
    Needs,
    WorkerFacts,
    fits,
    fits_worker,
    has_needs,
    takers,
)
from jobs.models import Attempt, AttemptDevice, AttemptNode, Job, Worker
from jobs.queue import job_queue
from jobs.shared_reads import WorkerRow, once
from jobs.status import Reason, Status
from wcl_core import protocol


@dataclass(frozen=True)
class Member:
    """A worker of a gang, with the devices that the job gets there."""

    worker_id: str
    worker_name: str
    address: str
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of a gang meet.

    Attributes:
        address, port: of the first node.
        secret: random; each rank proves that it has it before anything else.
        checkpoint_id: that all nodes resume from; None for a start from scratch.
    """

    address: str
    port: int
    secret: str
    checkpoint_id: str | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def seen_from(self, address: str) -> protocol.Rendezvous:
        """Return what the ranks of a node with this address need."""
        return protocol.Rendezvous(address=self.address, port=self.port, secret=self.secret, own_address=address)


@dataclass(frozen=True)
class Startable:
    """Due jobs of several nodes that can start now, as one of their workers sees them.

    Attributes:
        led: the condition for those that this worker starts for all.
        joined: the first one that another worker starts with this one; its room is for that job.
        leader: the id of that worker.
    """

    led: ColumnElement[bool]
    joined: Job | None
    leader: str | None = None


def waiting(session: Session, worker: WorkerFacts) -> list[Needs]:
    """Return the needs of the due jobs of several nodes that the worker could be a node of, each once.

    Many jobs have few different needs, so a job that no gang can start hides no other one.
    """
    statement = select(*NEEDS).where(job_queue(session).is_ready(), Job.nodes > 1, fits_worker(worker)).distinct()
    return [Needs(*row) for row in session.execute(statement)]


def fillable(session: Session, worker: WorkerFacts) -> list[Needs]:
    """Return those of the needs that enough workers meet, also busy ones."""
    every = waiting(session, worker)
    workers = room_of(session, worker.pool)[0] if every else []
    workers = [each for each in workers if each.address is not None]
    return [needs for needs in every if sum(fits(each, needs) for each in workers) >= needs.nodes]


def startable(session: Session, worker: WorkerFacts, free: Free, avoided: Collection[str] = ()) -> Startable:
    """Return the due jobs of several nodes that can start now with a worker.

    Args:
        free: the free part of the worker, which knows it better than the database.
        avoided: ids of the workers that start no gang; one without them may be possible.
    """
    if not (every := waiting(session, worker)):
        return Startable(has_needs(()), None)
    room = _with_room(session, worker, free)
    led, others = [has_needs(())], [has_needs(())]
    for stretch, kept in _stretches(session, room[0]):
        gangs = {needs: _ids(_filled(needs, *room, avoided, kept)) for needs in every}
        led.append(and_(stretch, has_needs([needs for needs, ids in gangs.items() if ids[:1] == [worker.id]])))
        others.append(and_(stretch, has_needs([needs for needs, ids in gangs.items() if worker.id in ids[1:]])))
    queue = job_queue(session)
    first = select(Job).where(queue.is_ready(), or_(*others)).order_by(*queue.order).limit(1)
    if (joined := session.execute(first).scalar_one_or_none()) is None:
        return Startable(or_(*led), None)
    leader = _filled(Needs.of(joined), *room, avoided, _kept(session, room[0], joined))[0]
    return Startable(or_(*led), joined, leader.worker_id)


def locked(
    session: Session, job: Job, worker: WorkerFacts, free: Free, avoided: Collection[str] = ()
) -> tuple[Member, ...]:
    """Lock the workers of the gang that can start the job now, and return it; none if it has changed meanwhile.

    The first node has the lowest id and holds its own lock already, so all workers lock in one order.
    """
    gang = _now(session, job, worker, free, avoided)
    ids = _ids(gang)
    if not gang or ids[0] != worker.id:
        return ()
    session.execute(select(Worker.id).where(Worker.id.in_(ids[1:])).order_by(Worker.id).with_for_update())
    session.expire_all()
    room_of(session, worker.pool, is_fresh=True)
    return gang if _now(session, job, worker, free, avoided) == gang else ()


def _now(session: Session, job: Job, worker: WorkerFacts, free: Free, avoided: Collection[str]) -> tuple[Member, ...]:
    """Return the gang that can start a job now; none if too few workers have room."""
    workers, room = _with_room(session, worker, free)
    return _filled(Needs.of(job), workers, room, avoided, _kept(session, workers, job))


def _ids(gang: Sequence[Member]) -> list[str]:
    return [member.worker_id for member in gang]


def has_gang(session: Session, worker: WorkerFacts) -> bool:
    """Return whether a due job of several nodes waits that the worker could be a node of."""
    return bool(waiting(session, worker))


def room_of(session: Session, pool: str, *, is_fresh: bool = False) -> tuple[list[WorkerRow], dict[str, Free]]:
    """Return the workers of a pool that take jobs, and the free part of each, as the transaction first read them.

    A look at the queue needs them up to five times.
    """

    def read() -> tuple[list[WorkerRow], dict[str, Free]]:
        workers = takers(session, Worker.pool == pool)
        return workers, free_of(session, workers)

    return once(session, ("room", pool), read, is_fresh=is_fresh)


def _with_room(session: Session, worker: WorkerFacts, free: Free) -> tuple[list[WorkerRow], dict[str, Free]]:
    """Return the workers of the pool that take part in gangs, and the free part of each.

    The lowest id comes first; a worker that did not begin its node in the last attempt of a waiting job comes last.
    """
    workers, room = room_of(session, worker.pool)
    workers = [each for each in workers if each.address is not None]
    late = (
        select(AttemptNode.worker_id)
        .join(Attempt, is_node_of())
        .join(Job, and_(Job.id == Attempt.job_id, Job.attempt == Attempt.number))
        .where(Job.status == Status.QUEUED, Job.pool == worker.pool, Job.status_reason == Reason.NODE_LATE)
        .where(AttemptNode.node > 0, AttemptNode.renewals == 0)
    )
    ids = set(session.execute(late).scalars())
    workers.sort(key=lambda each: (each.id in ids, each.id))
    return workers, room | {worker.id: free}


# Workers that keep something for an earlier job, each with whether these are devices; otherwise CPU slots.
_Kept = Mapping[str, bool]


def _held_jobs(session: Session, workers: Sequence[WorkerRow]) -> list[Job]:
    """Return the due jobs that some of the workers keep their free part for, in the order of the queue."""
    if not (ids := {each.kept_for for each in workers if each.kept_for is not None}):
        return []
    queue = job_queue(session)
    held = select(Job).where(queue.is_ready(), Job.id.in_(ids)).order_by(*queue.order)
    return list(session.execute(held).scalars())


def _kept_for(jobs: Sequence[Job], workers: Sequence[WorkerRow]) -> _Kept:
    by_id = {job.id: job for job in jobs}
    return {each.id: by_id[each.kept_for].gpus > 0 for each in workers if each.kept_for in by_id}


def _stretches(session: Session, workers: Sequence[WorkerRow]) -> list[tuple[ColumnElement[bool], _Kept]]:
    """Return the stretches of the queue up to each held job, and after the last one: a condition and what is kept."""
    held = _held_jobs(session, workers)
    result: list[tuple[ColumnElement[bool], _Kept]] = []
    is_behind: ColumnElement[bool] = true()
    for index, job in enumerate(held):
        is_within = or_(job_queue(session).is_before(job), Job.id == job.id)
        result.append((and_(is_behind, is_within), _kept_for(held[:index], workers)))
        is_behind = ~is_within
    return [*result, (is_behind, _kept_for(held, workers))]


def _kept(session: Session, workers: Sequence[WorkerRow], job: Job) -> _Kept:
    """Return what is kept for jobs that are before a job; `_stretches` decides the same for a query."""
    place_of = job_queue(session).place_of
    earlier = [each for each in _held_jobs(session, workers) if place_of(each) < place_of(job)]
    return _kept_for(earlier, workers)


def _filled(
    needs: Needs, workers: Sequence[WorkerRow], free: Mapping[str, Free], avoided: Collection[str], kept: _Kept
) -> tuple[Member, ...]:
    """Return the gang that can start a job now, the first node first; none if too few workers have room."""
    is_with_devices = needs.gpus > 0
    with_room = [each for each in workers if fits(each, needs) and free[each.id].holds(needs.gpus)]
    with_room = [each for each in with_room if kept.get(each.id) is not is_with_devices]
    while len(with_room) >= needs.nodes:
        gang = sorted(with_room[: needs.nodes], key=lambda each: each.id)
        if gang[0].id not in avoided:
            return tuple(
                Member(each.id, each.name, each.address or "", free[each.id].take(needs.gpus)) for each in gang
            )
        with_room.remove(gang[0])
    return ()


# --- nodes that a worker has not begun yet -------------------------------------------------------------------------


def is_given(worker_id: str) -> ColumnElement[bool]:
    """Return the condition for a node that a worker has been given and has not begun, in a query with its attempt."""
    return and_(
        AttemptNode.worker_id == worker_id,
        AttemptNode.node > 0,
        AttemptNode.renewals == 0,
        Attempt.ended_at.is_(None),
    )


def without_given(session: Session, worker: WorkerFacts, free: Free) -> Free:
    """Return the free part of a worker without what nodes will use that it has been given and has not begun.

    Their devices are in use already.
    """
    if worker.address is None:
        return free
    given = select(AttemptNode.job_id, AttemptNode.attempt).join(Attempt, is_node_of()).where(is_given(worker.id))
    nodes = session.execute(given).all()
    if nodes and worker.takes_one:
        return Free((), 0)
    on_cpu = sum(not devices_of(session, job_id, attempt) for job_id, attempt in nodes)
    return Free(free.devices, max(0, free.cpu_slots - on_cpu))


def devices_of(session: Session, job_id: str, attempt: int, node: int | None = None) -> tuple[str, ...]:
    """Return the devices of an attempt, or of one of its nodes, in order."""
    rows = select(AttemptDevice.device).where(AttemptDevice.job_id == job_id, AttemptDevice.attempt == attempt)
    if node is not None:
        rows = rows.where(AttemptDevice.node == node)
    return tuple(session.execute(rows.order_by(AttemptDevice.node, AttemptDevice.place)).scalars())


def missing(session: Session, attempt: AttemptRef) -> list[str]:
    """Return the names of the workers that have not begun their node of an attempt."""
    late = select(AttemptNode.worker_name).where(
        AttemptNode.job_id == attempt.job_id,
        AttemptNode.attempt == attempt.number,
        AttemptNode.node > 0,
        AttemptNode.renewals == 0,
    )
    return list(session.execute(late.order_by(AttemptNode.node)).scalars())


# --- reading -------------------------------------------------------------------------------------------------------


def nodes_of(session: Session, attempts: Sequence[Attempt]) -> dict[int, list[AttemptNode]]:
    """Return the nodes of attempts of one job by the attempt's number; none for an attempt on one worker."""
    result: dict[int, list[AttemptNode]] = {}
    if attempts:
        rows = select(AttemptNode).where(AttemptNode.job_id == attempts[0].job_id)
        for row in session.execute(rows.order_by(AttemptNode.attempt, AttemptNode.node)).scalars():
            result.setdefault(row.attempt, []).append(row)
    return result
