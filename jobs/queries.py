"""Everything that is read about jobs; short statements, nothing lazy, no counts over whole tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import or_, select, tuple_
from sqlalchemy.orm import Session

from jobs.errors import FieldError, Invalid, NotFound
from jobs.models import (
    Artifact,
    Attempt,
    Checkpoint,
    Dataset,
    Evaluation,
    Event,
    Job,
    JobEvaluation,
    Log,
    Tag,
    Worker,
)

T = TypeVar("T")
_MAX_INTEGER = 2**31 - 1  # PostgreSQL refuses to compare a column with more than it holds


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a list, and where the next part begins."""

    items: list[T]
    next_cursor: str | None


def get_job(session: Session, job_id: str) -> Job:
    """One job.

    Raises:
        NotFound: there is none of this id.
    """
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    return job


def list_jobs(
    session: Session,
    *,
    status: Sequence[str] = (),
    kind: str | None = None,
    tag: str | None = None,
    q: str | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> Page[Job]:
    """Newest first; `q` looks into name, id and dataset; the cursor is the last id seen.

    Raises:
        Invalid: the cursor is not one of ours.
    """
    statement = select(Job).order_by(Job.id.desc()).limit(limit + 1)
    if status:
        statement = statement.where(Job.status.in_(status))
    if kind:
        statement = statement.where(Job.kind == kind)
    if tag:
        statement = statement.where(Job.id.in_(select(Tag.job_id).where(Tag.tag == tag)))
    if q:
        matches = (column.icontains(q, autoescape=True) for column in (Job.name, Job.id, Job.dataset_name))
        statement = statement.where(or_(*matches))
    if cursor:
        if len(cursor) != 36:
            raise Invalid([FieldError("cursor", "expected a cursor that a list answered")])
        statement = statement.where(Job.id < cursor)
    jobs = list(session.execute(statement).scalars())
    return Page(jobs[:limit], jobs[limit - 1].id if len(jobs) > limit else None)


def tags(session: Session, job_ids: Sequence[str]) -> dict[str, list[str]]:
    """Tags by job id."""
    found: dict[str, list[str]] = {job_id: [] for job_id in job_ids}
    rows = session.execute(select(Tag.job_id, Tag.tag).where(Tag.job_id.in_(job_ids)).order_by(Tag.tag))
    for job_id, tag in rows:
        found[job_id].append(tag)
    return found


def attempts(session: Session, job_id: str) -> list[Attempt]:
    """Oldest first."""
    return list(session.execute(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)).scalars())


def events_after(session: Session, job_id: str, seq: int, limit: int = 500, until: int = _MAX_INTEGER) -> list[Event]:
    """Events with a higher number, in order, up to that of `until`."""
    statement = select(Event).where(Event.job_id == job_id, Event.seq > min(seq, _MAX_INTEGER), Event.seq <= until)
    return list(session.execute(statement.order_by(Event.seq).limit(limit)).scalars())


def logs(session: Session, job_id: str, after: tuple[int, int] | None = None, limit: int = 500) -> list[Log]:
    """Log lines after (attempt, seq), in order; without it the last `limit` lines."""
    statement = select(Log).where(Log.job_id == job_id)
    if after is None:
        newest = statement.order_by(Log.attempt.desc(), Log.seq.desc()).limit(limit)
        return list(session.execute(newest).scalars())[::-1]
    return logs_between(session, job_id, after, (_MAX_INTEGER, 0), limit)


def logs_between(
    session: Session, job_id: str, after: tuple[int, int], until: tuple[int, int], limit: int
) -> list[Log]:
    """Log lines after one (attempt, seq) up to another, in order."""
    if after >= until:
        return []
    place = tuple_(Log.attempt, Log.seq)
    statement = select(Log).where(Log.job_id == job_id, place > (min(after[0], _MAX_INTEGER), after[1]), place <= until)
    return list(session.execute(statement.order_by(Log.attempt, Log.seq).limit(limit)).scalars())


def checkpoints(session: Session, job_id: str) -> list[Checkpoint]:
    """Newest first, without deleted ones."""
    statement = (
        select(Checkpoint)
        .where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
        .order_by(Checkpoint.step.desc(), Checkpoint.attempt.desc())
    )
    return list(session.execute(statement).scalars())


def get_checkpoint(session: Session, checkpoint_id: str) -> Checkpoint:
    """One checkpoint that was not deleted.

    Raises:
        NotFound: there is none.
    """
    checkpoint = session.get(Checkpoint, checkpoint_id)
    if checkpoint is None or checkpoint.deleted_at is not None:
        raise NotFound(f"there is no checkpoint {checkpoint_id}")
    return checkpoint


def artifacts(session: Session, job_id: str) -> list[Artifact]:
    """By name; of one that several attempts made, the newest attempt's."""
    statement = select(Artifact).where(Artifact.job_id == job_id).order_by(Artifact.name, Artifact.attempt)
    return list({artifact.name: artifact for artifact in session.execute(statement).scalars()}.values())


def get_artifact(session: Session, job_id: str, name: str) -> Artifact:
    """The newest attempt's artifact of a name.

    Raises:
        NotFound: no attempt made one.
    """
    named = select(Artifact).where(Artifact.job_id == job_id, Artifact.name == name)
    artifact = session.execute(named.order_by(Artifact.attempt.desc()).limit(1)).scalar_one_or_none()
    if artifact is None:
        raise NotFound(f"job {job_id} has no artifact {name}")
    return artifact


def evaluations(session: Session, job_id: str) -> list[Evaluation]:
    """What the job measured, and what other jobs measured on its checkpoints."""
    own = select(Checkpoint.sha256).where(Checkpoint.job_id == job_id)
    linked = select(JobEvaluation.evaluation_id).where(JobEvaluation.job_id == job_id)
    statement = (
        select(Evaluation)
        .where(or_(Evaluation.id.in_(linked), Evaluation.features_digest.in_(own)))
        .order_by(Evaluation.id)
    )
    return list(session.execute(statement).scalars())


def workers(session: Session, *, alive_only: bool = False) -> list[Worker]:
    """All workers, those that run first, then newest first."""
    statement = select(Worker).order_by(Worker.id.desc())
    if alive_only:
        statement = statement.where(Worker.is_live)
    found = list(session.execute(statement.limit(200)).scalars())
    return sorted(found, key=lambda worker: not worker.is_live)


def datasets(session: Session) -> list[Dataset]:
    """By name."""
    return list(session.execute(select(Dataset).order_by(Dataset.name)).scalars())


def get_dataset(session: Session, name: str) -> Dataset:
    """One dataset.

    Raises:
        NotFound: nobody has announced one of this name.
    """
    found = session.execute(select(Dataset).where(Dataset.name == name)).scalar_one_or_none()
    if found is None:
        raise NotFound(f"there is no dataset {name}")
    return found


def counts_by_status(session: Session) -> dict[str, Any]:
    """How many jobs wait, run or are held: an index range each, never the finished ones."""
    from sqlalchemy import func

    statement = select(Job.status, func.count()).where(Job.status.in_(("blocked", "queued", "running", "paused")))
    return dict(session.execute(statement.group_by(Job.status)).all())


def newest_states(session: Session, limit: int = 200) -> dict[str, tuple[Any, ...]]:
    """What lists show of the newest jobs and of all running ones, by id, to be compared with the next look."""
    states = select(Job.id, Job.updated_at, Job.progress)
    newest = session.execute(states.order_by(Job.id.desc()).limit(limit)).all()
    running = session.execute(states.where(Job.status == "running")).all()
    return {row.id: (row.updated_at, row.progress) for row in (*newest, *running)}
