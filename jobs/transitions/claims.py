"""Claims: a worker takes the best waiting job that it can run, and starts a new attempt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from jobs import checkpoints
from jobs.attempts import AttemptRef
from jobs.checkpoints import CheckpointRef
from jobs.database import now_ms
from jobs.eligibility import WorkerFacts, fits_worker, is_due
from jobs.models import Attempt, Checkpoint, Job, Worker
from jobs.status import Status
from jobs.transitions.status_change import move


@dataclass(frozen=True)
class Claim:
    """A job that a worker has claimed.

    Attributes:
        attempt: the new attempt.
        resume: the checkpoint to continue from.
        evaluated: the checkpoint to evaluate.
        must_resume: a retry never starts from scratch.
    """

    attempt: AttemptRef
    kind: str
    spec: dict[str, Any]
    dataset_name: str
    dataset_digest: str
    resume: CheckpointRef | None
    evaluated: CheckpointRef | None
    must_resume: bool = False

    @property
    def job_id(self) -> str:
        """The id of the claimed job."""
        return self.attempt.job_id

    @property
    def number(self) -> int:
        """The number of the new attempt."""
        return self.attempt.number


def is_claimable(session: Session, worker: WorkerFacts) -> bool:
    """Return whether a due job fits the worker; another worker may still claim it first."""
    return session.execute(_fitting(worker)).first() is not None


def claim(session: Session, worker: WorkerFacts) -> Claim | None:
    """Claim the best job that fits, by priority, then age; return None if there is none or the worker drains."""
    # Locked until the commit: a concurrent drain request takes effect after this claim.
    draining = select(Worker.drain_requested_at).where(Worker.id == worker.id).with_for_update()
    if session.execute(draining).scalar_one_or_none() is not None:
        return None
    # SQLite has no row locks and ignores this; its writers take turns.
    candidate = _fitting(worker).with_for_update(skip_locked=True)
    job_id = session.execute(candidate).scalar_one_or_none()
    if job_id is None:
        return None
    attempt = AttemptRef.new(job_id, session.execute(select(Job.attempt).where(Job.id == job_id)).scalar_one() + 1)
    moved = move(
        session,
        job_id,
        frozenset({Status.QUEUED}),
        Status.RUNNING,
        "claimed",
        data={"attempt": attempt.number, "worker": worker.name},
        attempt=attempt.number,
        not_before=None,
        progress=None,
        started_at=session.execute(select(Job.started_at).where(Job.id == job_id)).scalar_one() or now_ms(),
    )
    if not moved:
        return None
    session.add(Attempt(**vars(attempt), worker_id=worker.id, worker_name=worker.name, ran_ms=0))
    session.execute(update(Worker).where(Worker.id == worker.id).values(state="busy", job_id=job_id))
    job = session.get_one(Job, job_id)
    evaluated_id = job.spec.get("features", {}).get("checkpoint_id")
    evaluated = session.get(Checkpoint, evaluated_id) if evaluated_id else None
    return Claim(
        attempt=attempt,
        kind=job.kind,
        spec=job.spec,
        dataset_name=job.dataset_name,
        dataset_digest=job.dataset_digest,
        resume=checkpoints.resume_point(session, job_id),
        evaluated=CheckpointRef.of(evaluated) if evaluated else None,
        must_resume=job.resume_checkpoint_id is not None,
    )


def _fitting(worker: WorkerFacts) -> Select[str]:
    """Return the query for the id of the best due job that fits the worker."""
    return select(Job.id).where(is_due(), fits_worker(worker)).order_by(Job.priority.desc(), Job.queue_place).limit(1)
