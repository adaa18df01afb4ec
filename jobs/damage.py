"""Damaged checkpoints, whose file is missing or changed: they are marked and skipped; row and file are kept."""

from __future__ import annotations

from sqlalchemy import func, update
from sqlalchemy.orm import Session

from jobs import checkpoints, transitions
from jobs.checkpoints import CheckpointRef
from jobs.database import now_ms
from jobs.events import record
from jobs.models import Checkpoint


def skip(session: Session, job_id: str, number: int, damaged: CheckpointRef, damage: str) -> CheckpointRef | None:
    """Mark the checkpoint that an attempt could not resume from, and return the next one to try.

    The job gets a warning event.

    Args:
        session: a writing transaction.
        job_id, number: the attempt that read it.
        damaged: the checkpoint.
        damage: a sentence for people.

    Returns:
        An older checkpoint of the job, or the one that the job was started from; None when no good one is left.

    Raises:
        Superseded: the attempt has ended.
    """
    mark(session, job_id, number, damaged)
    following = checkpoints.resume_point(session, job_id)
    consequence = f"the run resumes from step {following.step}" if following else "no good checkpoint is left"
    data = {"reason": "damaged_checkpoint", "attempt": number, "checkpoint": damaged.id, "step": damaged.step}
    record(session, job_id, "warning", data | {"message": f"{damage}; {consequence}"})
    return following


def mark(session: Session, job_id: str, number: int, damaged: CheckpointRef) -> None:
    """Mark a checkpoint as damaged, so that it is no longer good.

    Raises:
        Superseded: the attempt has ended.
    """
    transitions.deliver(session, job_id, number, [])  # the fence
    first_seen = func.coalesce(Checkpoint.damaged_at, now_ms())
    session.execute(update(Checkpoint).where(Checkpoint.id == damaged.id).values(damaged_at=first_seen))
