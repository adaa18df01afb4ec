"""A waiting job becomes a worker's: which one it takes, and where the run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, or_, select, tuple_, update
from sqlalchemy.orm import Session

from jobs.database import now_ms
from jobs.models import TRAINING, Attempt, Checkpoint, Job, Worker
from jobs.status import Status
from jobs.transitions.guard import move


@dataclass(frozen=True)
class WorkerFacts:
    """What a claim must fit: the worker's row, pool, GPUs, datasets (name to digest) and known spec versions."""

    id: str
    name: str
    pool: str
    gpus: int
    datasets: dict[str, str]
    spec_versions: tuple[int, ...]


@dataclass(frozen=True)
class CheckpointRef:
    """A registered checkpoint; `path` is its storage key."""

    id: str
    step: int
    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Claim:
    """A job that is now this worker's, as attempt `number`."""

    job_id: str
    number: int
    kind: str
    spec: dict[str, Any]
    dataset_name: str
    dataset_digest: str
    resume: CheckpointRef | None
    checkpoint: CheckpointRef | None
    must_resume: bool = False  # a retry never begins from scratch


def is_claimable(session: Session, worker: WorkerFacts) -> bool:
    """Whether a job waits that fits; the claim itself may still come too late."""
    return session.execute(_fitting(worker)).first() is not None


def claim(session: Session, worker: WorkerFacts) -> Claim | None:
    """Take the best job that fits: highest priority, then oldest; None when there is none, or the worker drains."""
    # Held until the commit: a drain that is asked for meanwhile is answered after this claim.
    asked = select(Worker.drain_requested_at).where(Worker.id == worker.id).with_for_update()
    if session.execute(asked).scalar_one_or_none() is not None:
        return None
    # SQLite has no row locks and ignores this; its writers take turns.
    candidate = _fitting(worker).with_for_update(skip_locked=True)
    job_id = session.execute(candidate).scalar_one_or_none()
    if job_id is None:
        return None
    number = session.execute(select(Job.attempt).where(Job.id == job_id)).scalar_one() + 1
    moved = move(
        session,
        job_id,
        frozenset({Status.QUEUED}),
        Status.RUNNING,
        "claimed",
        data={"attempt": number, "worker": worker.name},
        attempt=number,
        not_before=None,
        progress=None,
        started_at=session.execute(select(Job.started_at).where(Job.id == job_id)).scalar_one() or now_ms(),
    )
    if not moved:
        return None
    session.add(Attempt(job_id=job_id, number=number, worker_id=worker.id, worker_name=worker.name))
    session.execute(update(Worker).where(Worker.id == worker.id).values(state="busy", job_id=job_id))
    job = session.get_one(Job, job_id)
    return Claim(
        job_id=job_id,
        number=number,
        kind=job.kind,
        spec=job.spec,
        dataset_name=job.dataset_name,
        dataset_digest=job.dataset_digest,
        resume=resume_point(session, job_id),
        checkpoint=_reference(session, job.spec.get("features", {}).get("checkpoint_id")),
        must_resume=job.resume_checkpoint_id is not None,
    )


def _fitting(worker: WorkerFacts) -> Select[str]:
    """The id of the best waiting job that fits this worker."""
    return (
        select(Job.id)
        .where(
            Job.status == Status.QUEUED,
            Job.pool == worker.pool,
            Job.gpus <= worker.gpus,
            Job.spec_version.in_(worker.spec_versions),
            tuple_(Job.dataset_name, Job.dataset_digest).in_(list(worker.datasets.items())),
            or_(Job.not_before.is_(None), Job.not_before <= now_ms()),
        )
        .order_by(Job.priority.desc(), Job.id)
        .limit(1)
    )


def resume_point(session: Session, job_id: str) -> CheckpointRef | None:
    """Where the job's next attempt goes on: its own newest good checkpoint, or the one that it began from."""
    began_from = select(Job.resume_checkpoint_id).where(Job.id == job_id).scalar_subquery()
    statement = select(Checkpoint.id).where(Checkpoint.id == began_from, *_IS_GOOD)
    return newest_checkpoint(session, job_id) or _reference(session, session.execute(statement).scalar_one_or_none())


_IS_GOOD = (Checkpoint.deleted_at.is_(None), Checkpoint.damaged_at.is_(None))


def newest_checkpoint(session: Session, job_id: str) -> CheckpointRef | None:
    """The newest good checkpoint of the job itself."""
    statement = (
        select(Checkpoint)
        .where(Checkpoint.job_id == job_id, Checkpoint.kind == TRAINING, *_IS_GOOD)
        .order_by(Checkpoint.step.desc(), Checkpoint.attempt.desc())
        .limit(1)
    )
    found = session.execute(statement).scalar_one_or_none()
    return _reference(session, found.id) if found else None


def _reference(session: Session, checkpoint_id: str | None) -> CheckpointRef | None:
    found = session.get(Checkpoint, checkpoint_id) if checkpoint_id else None
    if found is None:
        return None
    return CheckpointRef(found.id, found.step, found.path, found.sha256, found.size)
