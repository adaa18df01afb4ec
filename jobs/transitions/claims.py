"""Claims: a worker takes the best waiting job that it can run, and starts a new attempt."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Select, exists, func, or_, select, update
from sqlalchemy.orm import Session

from jobs import checkpoints, gangs, limits
from jobs.attempts import AttemptRef
from jobs.checkpoints import CheckpointRef
from jobs.database import Signal, now_ms, signal
from jobs.devices import Free, in_use, is_node_of
from jobs.eligibility import WorkerFacts, fits_free, fits_worker
from jobs.gangs import Member
from jobs.holding import PassedOver, may_start
from jobs.models import Attempt, AttemptDevice, AttemptNode, Checkpoint, Job, Worker
from jobs.queue import job_queue
from jobs.status import Status
from jobs.transitions.status_change import move

_MOST_LOCKED: Final = 64


@dataclass(frozen=True)
class Claim:
    """A job that a worker has claimed.

    Attributes:
        attempt: the new attempt.
        resume: the checkpoint to continue from.
        evaluated: the checkpoint to evaluate.
        must_resume: a retry never starts from scratch.
        devices: UUIDs of the devices that the attempt holds on this worker; none for a job that needs none.
        node: the place of this worker among those of the attempt, from 0.
        num_nodes: number of workers that run the attempt together.
        request_id: of the job's submission (jobs.logs); None if no request has submitted it.
    """

    attempt: AttemptRef
    kind: str
    spec: dict[str, Any]
    dataset_name: str
    dataset_digest: str
    resume: CheckpointRef | None
    evaluated: CheckpointRef | None
    must_resume: bool = False
    devices: tuple[str, ...] = ()
    node: int = 0
    num_nodes: int = 1
    request_id: str | None = None

    @property
    def job_id(self) -> str:
        """The id of the claimed job."""
        return self.attempt.job_id

    @property
    def number(self) -> int:
        """The number of the new attempt."""
        return self.attempt.number


def may_have_work(session: Session, worker: WorkerFacts) -> bool:
    """Return whether a job of the worker's pool is queued, or a node waits for the worker: one short statement."""
    return session.execute(_is_any(worker.pool, None if worker.address is None else worker.id)).scalar_one()


@lru_cache(maxsize=64)
def _is_any(pool: str, node_id: str | None) -> Select[bool]:
    """Make the statement of each poll once, since its making takes longer than its execution."""
    is_queued = exists().where(Job.status == Status.QUEUED, Job.pool == pool)
    if node_id is None:
        return select(is_queued)
    return select(or_(is_queued, exists().where(is_node_of(), gangs.is_given(node_id))))


def is_claimable(
    session: Session,
    worker: WorkerFacts,
    free: Free | None = None,
    held: PassedOver | None = None,
    avoided: Collection[str] = (),
) -> bool:
    """Return whether a due job fits the free part of the worker; another worker may still claim it first."""
    best = _best(session, worker, unused(session, worker, free), held, avoided)
    return session.execute(best.with_only_columns(Job.id)).first() is not None


def claim(
    session: Session,
    worker: WorkerFacts,
    free: Free | None = None,
    held: PassedOver | None = None,
    avoided: Collection[str] = (),
) -> Claim | None:
    """Claim the best job that fits, by priority, then age; return None if there is none or it takes no jobs.

    The attempt and the devices that it holds are one transaction, also on several workers.  A unique index rejects it
    if another worker has taken one of the devices in the meantime.

    Args:
        session: a writing transaction.
        worker: its properties.
        free: the part of the worker that none of its attempts uses; by default all of it.
        held: the job that the worker keeps its devices for.
        avoided: ids of the workers whose gangs it does not wait for.

    Raises:
        IntegrityError: another attempt holds one of the devices.
    """
    # Locked until the commit: a concurrent drain or cordon takes effect after this claim.
    stopped_at = select(func.coalesce(Worker.drain_requested_at, Worker.cordoned_at)).where(Worker.id == worker.id)
    if session.execute(stopped_at.with_for_update()).scalar_one_or_none() is not None:
        return None
    free = unused(session, worker, free)
    while True:
        # Locked until the commit.  SQLite has no row locks and ignores this; its writers take turns.
        best = _best(session, worker, free, held, avoided).with_for_update(skip_locked=True)
        if (job := session.execute(best).scalar_one_or_none()) is None:
            return None
        job_id, num_nodes = job.id, job.nodes
        gang: tuple[Member, ...] = (Member(worker.id, worker.name, "", free.take(job.gpus)),)
        if num_nodes > 1 and not (gang := gangs.locked(session, job, worker, free, avoided)):
            return None
        if limits.has_room(session, job):
            break  # else another worker has claimed a job of this key meanwhile, and the queue now leaves this one out
    attempt = AttemptRef.new(job_id, job.attempt + 1)
    moved = move(
        session,
        job_id,
        frozenset({Status.QUEUED}),
        Status.RUNNING,
        "claimed",
        data={"attempt": attempt.number, "worker": worker.name} | _facts_of(gang),
        attempt=attempt.number,
        not_before=None,
        progress=None,
        started_at=job.started_at or now_ms(),
    )
    if not moved:
        return None
    session.add(Attempt(**vars(attempt), worker_id=worker.id, worker_name=worker.name, ran_ms=0))
    session.flush()  # the rows of its devices refer to it
    session.add_all(
        AttemptDevice(job_id=job_id, attempt=attempt.number, device=device, place=place, node=node)
        for node, member in enumerate(gang)
        for place, device in enumerate(member.devices)
    )
    if num_nodes > 1:
        _add_nodes(session, attempt, gang)
    session.flush()
    ids, oldest = [member.worker_id for member in gang], func.coalesce(Worker.job_id, job_id)
    session.execute(update(Worker).where(Worker.id.in_(ids)).values(state="busy", job_id=oldest))
    return claim_of(session, attempt, gang[0].devices, num_nodes=num_nodes)


def _facts_of(gang: tuple[Member, ...]) -> dict[str, Any]:
    """Return the devices and the workers of several as facts of the event."""
    devices = [device for member in gang for device in member.devices]
    workers = [member.worker_name for member in gang]
    return ({"devices": devices} if devices else {}) | ({"workers": workers} if len(workers) > 1 else {})


def _add_nodes(session: Session, attempt: AttemptRef, gang: tuple[Member, ...]) -> None:
    session.add_all(
        AttemptNode(
            job_id=attempt.job_id,
            attempt=attempt.number,
            node=node,
            worker_id=member.worker_id,
            worker_name=member.worker_name,
            address=member.address,
            renewals=0,
        )
        for node, member in enumerate(gang)
    )
    signal(session, Signal.DUE)  # the other workers


def claim_of(
    session: Session, attempt: AttemptRef, devices: tuple[str, ...], *, node: int = 0, num_nodes: int = 1
) -> Claim:
    """Return what a worker needs to run its part of an open attempt."""
    job_id = attempt.job_id
    job = session.get_one(Job, job_id)
    may_resume = attempt.number > 1 or job.resume_checkpoint_id is not None
    evaluated_id = job.spec.get("features", {}).get("checkpoint_id")
    evaluated = session.get(Checkpoint, evaluated_id) if evaluated_id else None
    return Claim(
        attempt=attempt,
        kind=job.kind,
        spec=job.spec,
        dataset_name=job.dataset_name,
        dataset_digest=job.dataset_digest,
        resume=checkpoints.resume_point(session, job_id) if may_resume else None,
        evaluated=CheckpointRef.of(evaluated) if evaluated else None,
        must_resume=job.resume_checkpoint_id is not None,
        devices=devices,
        node=node,
        num_nodes=num_nodes,
        request_id=job.request_id,
    )


def unused(session: Session, worker: WorkerFacts, free: Free | None) -> Free:
    """Return the free part of the worker without what the database gives to another attempt."""
    free = free or worker.all_free
    return gangs.without_given(session, worker, free.without(in_use(session, free.devices)))


def _best(
    session: Session, worker: WorkerFacts, free: Free, held: PassedOver | None, avoided: Collection[str]
) -> Select[Job]:
    """Return the query of the best due job that fits the free part of the worker and may start before the held one."""
    queue = job_queue(session)
    is_cordoned = exists().where(Worker.id == worker.id, Worker.cordoned_at.is_not(None))
    fitting = [fits_worker(worker), fits_free(free), ~is_cordoned]
    if worker.address is not None:
        gang = gangs.startable(session, worker, free, avoided)
        fitting.append(or_(Job.nodes == 1, gang.led))
        if gang.joined is not None:
            fitting.append(queue.is_before(gang.joined))
    if held is not None:
        fitting.append(may_start(session, held, fitting))
    # A claim passes over the jobs that others have locked: fewer workers of a pool than these claim at one moment.
    first = queue.first(*fitting, count=_MOST_LOCKED)
    return select(Job).where(Job.id.in_(first), queue.is_ready()).order_by(*queue.order).limit(1)
