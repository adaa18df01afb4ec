"""How far a needed job has to come, as conditions of a query over `Dependency` and the job it needs."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, exists, or_

from jobs.models import CHECKPOINT, TRAINING, Checkpoint, Dependency, Job
from jobs.status import Status


def is_met(needed: type[Job]) -> ColumnElement[bool]:
    """Whether it holds its job back no longer: the needed one has succeeded, or has the checkpoint waited for."""
    saved = exists().where(
        Checkpoint.job_id == needed.id,
        Checkpoint.kind == TRAINING,
        Checkpoint.deleted_at.is_(None),
        Checkpoint.damaged_at.is_(None),
    )
    return or_(needed.status == Status.SUCCEEDED, and_(Dependency.until == CHECKPOINT, saved))


def is_lost(needed: type[Job]) -> ColumnElement[bool]:
    """Whether it will never be met."""
    return and_(needed.status.in_((Status.FAILED, Status.CANCELLED)), ~is_met(needed))
