"""A checkpoint whose file is absent or changed: marked, told of, and passed by; row and file stay."""

from __future__ import annotations

from sqlalchemy import func, update
from sqlalchemy.orm import Session

from jobs import checkpoints, transitions
from jobs.checkpoints import CheckpointRef
from jobs.database import now_ms
from jobs.events import record
from jobs.models import Checkpoint


def pass_by(session: Session, job_id: str, number: int, found: CheckpointRef, what: str) -> CheckpointRef | None:
    """Mark the checkpoint that an attempt could not go on from, and tell the job where it goes on instead.

    Args:
        session: a writing transaction.
        job_id, number: the attempt that found it.
        found: the checkpoint.
        what: what is wrong with it, for people.

    Returns:
        The next one to try: older, of the same job, or what the job began from; None when no good one is left.

    Raises:
        Superseded: the attempt has ended, and what it found counts for nothing.
    """
    mark(session, job_id, number, found)
    following = checkpoints.resume_point(session, job_id)
    goes_on = f"the run goes on from step {following.step}" if following else "no good checkpoint is left"
    facts = {"reason": "damaged_checkpoint", "attempt": number, "checkpoint": found.id, "step": found.step}
    record(session, job_id, "warning", facts | {"message": f"{what}; {goes_on}"})
    return following


def mark(session: Session, job_id: str, number: int, found: CheckpointRef) -> None:
    """Mark a checkpoint as damaged, so that nobody is offered it any more.

    Raises:
        Superseded: the attempt has ended.
    """
    transitions.deliver(session, job_id, number, [])  # the fence
    first_seen = func.coalesce(Checkpoint.damaged_at, now_ms())
    session.execute(update(Checkpoint).where(Checkpoint.id == found.id).values(damaged_at=first_seen))
