"""Where a job comes from: the jobs and the imported weights behind it, the nearest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import deletions, weights
from jobs.models import Checkpoint, Job

_MOST = 50

Relation = Literal["continues", "retries", "starts_from", "evaluates", "copies"]
WORDS: dict[Relation, str] = {
    "continues": "continues",
    "retries": "retries",
    "starts_from": "starts from",
    "evaluates": "evaluates",
    "copies": "parent",
}


@dataclass(frozen=True)
class Origin:
    """One step back.

    Attributes:
        relation: of the job, or of the one before in the list, to this one.
        name: of the job, or of the imported weights.
        job_id: None for imported weights, and for weights that are removed.
        step: of the checkpoint that was taken; None without one.
        weights: digest of the weights that the training has started from.
        is_imported: whether this step is imported weights that are there.
    """

    relation: Relation
    name: str
    job_id: str | None = None
    step: int | None = None
    weights: str | None = None
    is_imported: bool = False

    @property
    def words(self) -> str:
        """The relation, for people."""
        return WORDS[self.relation]


def lineage(session: Session, job: Job) -> list[Origin]:
    """Return what a job comes from, the nearest first; at most 50 steps back."""
    origins: list[Origin] = []
    current: Job | None = job
    while current is not None and len(origins) < _MOST:
        if (origin := _origin(session, current)) is None:
            break
        origins.append(origin)
        current = session.get(Job, origin.job_id) if origin.job_id else None
    return origins


def _origin(session: Session, job: Job) -> Origin | None:
    """Return the step from a job to what it comes from; None for one that comes from nothing."""
    checkpoint_id = job.resume_checkpoint_id or job.spec.get("features", {}).get("checkpoint_id")
    sha256 = job.spec.get("weights")
    if checkpoint_id is not None and (row := session.get(Checkpoint, checkpoint_id)) is not None:
        other = session.get_one(Job, row.job_id)
        if job.kind == "evaluate":
            return Origin("evaluates", other.name, other.id, row.step)
        is_longer = job.spec.get("restarts") != other.spec.get("restarts")
        return Origin("continues" if is_longer else "retries", other.name, other.id, row.step)
    if sha256 is not None:
        return _start(session, sha256)
    if job.parent_id is None:
        return None
    if (other_ := session.get(Job, job.parent_id)) is None:
        name = deletions.name_of(session, job.parent_id) or job.parent_id
        started: Relation = "continues" if job.spec.get("restarts") else "retries"
        return Origin(started if checkpoint_id else "copies", f"{name} (deleted)")
    return Origin("evaluates" if job.kind != other_.kind else "copies", other_.name, other_.id)


def _start(session: Session, sha256: str) -> Origin:
    if (source := weights.source(session, sha256)) is not None and source.job_id is None:
        return Origin("starts_from", source.name, weights=sha256, is_imported=True)
    statement = select(Checkpoint).where(Checkpoint.sha256 == sha256).order_by(Checkpoint.id.desc()).limit(1)
    if (row := session.execute(statement).scalar_one_or_none()) is None:  # also when its file is deleted
        return Origin("starts_from", "weights that are removed", weights=sha256)
    return Origin("starts_from", session.get_one(Job, row.job_id).name, row.job_id, row.step, sha256)
