"""Registered checkpoints: which of them are good, and the queries, pins and deletions that follow from it.

Retention has two steps:

    a checkpoint is registered     `expire` marks rows that exceed the job's `checkpoints.keep_…` as deleted
    the transaction has committed  `orphans` lists stored files that belong to no row; the caller removes them

A crash between the two steps leaves a marked row, whose file the next call of `orphans` lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import BigInteger, ColumnElement, and_, case, cast, func, null, or_, select, update
from sqlalchemy.orm import Session, load_only

from jobs import access, activity, needs, policies
from jobs.attempts import AttemptRef
from jobs.database import now_ms
from jobs.errors import Conflict, NotFound, existing
from jobs.events import record
from jobs.models import SEES_HIDDEN, TRAINING, Artifact, Attempt, Checkpoint, Job, Point, Series
from jobs.policies import Policies
from jobs.status import TERMINAL, Status
from wcl_core.config import PretrainSpec, parse_spec
from wcl_core.protocol import KNN_TOP1, VIEW_TOP1

BEST_METRIC = KNN_TOP1


def is_good() -> ColumnElement[bool]:
    """Return the condition for a checkpoint that a run may start from: of kind training, kept, not seen with a flaw."""
    is_kept, is_undamaged = Checkpoint.deleted_at.is_(None), Checkpoint.damaged_at.is_(None)
    return and_(Checkpoint.kind == TRAINING, is_kept, is_undamaged, Checkpoint.missing_at.is_(None))


# --- queries -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckpointRef:
    """A registered checkpoint, with the key of its file in the storage."""

    id: str
    step: int
    storage_key: str
    sha256: str
    size: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> CheckpointRef:
        return cls(checkpoint.id, checkpoint.step, checkpoint.storage_key, checkpoint.sha256, checkpoint.size)

    @property
    def job_id(self) -> str:
        """The job that wrote it."""
        return self.storage_key.partition("/")[0]

    def describe(self) -> str:
        """Return the checkpoint's name for messages."""
        return f"checkpoint {self.id} of step {self.step}"


def good(session: Session, job_id: str) -> list[Checkpoint]:
    """Return the job's good checkpoints, newest first."""
    own = select(Checkpoint).where(Checkpoint.job_id == job_id, is_good())
    return list(session.execute(own.order_by(Checkpoint.step.desc(), Checkpoint.attempt.desc())).scalars())


def newest(session: Session, job_id: str) -> CheckpointRef | None:
    """Return the job's newest good checkpoint, or None."""
    own = select(Checkpoint).where(Checkpoint.job_id == job_id, is_good())
    by_age = own.order_by(Checkpoint.step.desc(), Checkpoint.attempt.desc())
    checkpoint = session.execute(by_age.limit(1)).scalar_one_or_none()
    return CheckpointRef.of(checkpoint) if checkpoint else None


def resume_point(session: Session, job_id: str) -> CheckpointRef | None:
    """Return the checkpoint that the job's next attempt starts from.

    This is the job's own newest good checkpoint, or else the one that the job itself was started from.
    """
    if (own := newest(session, job_id)) is not None:
        return own
    started_from = select(Job.resume_checkpoint_id).where(Job.id == job_id).scalar_subquery()
    statement = select(Checkpoint).where(Checkpoint.id == started_from, is_good())
    checkpoint = session.execute(statement).scalar_one_or_none()
    return CheckpointRef.of(checkpoint) if checkpoint else None


def missing(session: Session, job_id: str) -> list[CheckpointRef]:
    """Return the checkpoints that a run of the job could start from if their file were not missing, best first.

    These are the job's own ones, newest first, then the one that the job itself was started from.
    """
    started_from = select(Job.resume_checkpoint_id).where(Job.id == job_id).scalar_subquery()
    is_missing = and_(Checkpoint.missing_at.is_not(None), Checkpoint.damaged_at.is_(None))
    statement = select(Checkpoint).where(
        or_(Checkpoint.job_id == job_id, Checkpoint.id == started_from),
        Checkpoint.kind == TRAINING,
        Checkpoint.deleted_at.is_(None),
        is_missing,
    )
    is_own = case((Checkpoint.job_id == job_id, 0), else_=1)
    ordered = statement.order_by(is_own, Checkpoint.step.desc(), Checkpoint.attempt.desc())
    return [CheckpointRef.of(row) for row in session.execute(ordered).scalars()]


def file_keys(session: Session, job_id: str) -> list[str]:
    """Return the storage keys of all registered files of a job."""
    kept = select(Checkpoint.storage_key).where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
    artifacts = select(Artifact.storage_key).where(Artifact.job_id == job_id)
    return list(session.execute(kept.union(artifacts)).scalars())


class LastAccuracy(NamedTuple):
    """The accuracy that a training had measured last when it saved a checkpoint, with the step of the measurement."""

    metric: str
    value: float
    step: int


def last_accuracies(session: Session, ids: Sequence[str]) -> dict[str, LastAccuracy]:
    """Return the last accuracy by checkpoint: of kNN, or without labels of the views.

    One that was saved before the first measurement after the training's start has none.
    """
    is_before = Point.step > 0, Point.step <= Checkpoint.step, Point.value.is_not(None)
    newest = select(func.max(Point.step)).where(Point.series_id == Series.id, *is_before)
    statement = (
        select(Checkpoint.id, Series.name, Point.value, Point.step)
        .join(Series, Series.job_id == Checkpoint.job_id)
        .join(Point, Point.series_id == Series.id)
        .where(Checkpoint.id.in_(ids), Checkpoint.kind == TRAINING, Series.name.in_((KNN_TOP1, VIEW_TOP1)))
        .where(Point.value.is_not(None), Point.step == newest.correlate(Checkpoint, Series).scalar_subquery())
        .order_by(Series.name.desc(), Point.attempt, Point.seq)  # a repeated measurement, and kNN, come last
    )
    return {each.id: LastAccuracy(each.name, each.value, each.step) for each in session.execute(statement)}


def best_first(newest_first: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return the checkpoints that have a value of `BEST_METRIC`, best first, of equal values the earliest first."""
    measured = [each for each in reversed(newest_first) if each.metrics.get(BEST_METRIC) is not None]
    return sorted(measured, key=lambda each: -float(each.metrics[BEST_METRIC]))


# --- changes -------------------------------------------------------------------------------------------------------


def hold(session: Session, checkpoint_id: str | None) -> bool:
    """Lock a good checkpoint against deletion until the transaction ends; return False when it is not good."""
    statement = select(Checkpoint.id).where(Checkpoint.id == checkpoint_id, is_good()).with_for_update(read=True)
    return session.execute(statement).first() is not None


def pin(session: Session, checkpoint_id: str, is_pinned: bool) -> Checkpoint:
    """Pin or unpin a checkpoint; a deletion that is under way holds the row and wins.

    Raises:
        NotFound: there is no such checkpoint.
    """
    kept = select(Checkpoint).where(Checkpoint.id == checkpoint_id, Checkpoint.deleted_at.is_(None))
    row = session.execute(kept.with_for_update()).scalar_one_or_none()
    checkpoint = existing(row, "checkpoint", checkpoint_id)
    _check_owner(session, checkpoint)
    if checkpoint.pinned == is_pinned:
        return checkpoint
    checkpoint.pinned = is_pinned
    session.flush()
    # No event of the job: it would lock the job's row, and a delivery of its run would wait.
    _note(session, checkpoint, "pin" if is_pinned else "unpin")
    return checkpoint


def _check_owner(session: Session, checkpoint: Checkpoint) -> None:
    created_by = session.execute(select(Job.created_by).where(Job.id == checkpoint.job_id)).scalar_one()
    access.check_owner(session, created_by, f"the job of checkpoint {checkpoint.id}")


def _note(session: Session, checkpoint: Checkpoint, action: str) -> None:
    activity.note(session, f"checkpoint.{action}", checkpoint.id, job=checkpoint.job_id, step=checkpoint.step)


def delete(session: Session, checkpoint_id: str) -> Checkpoint:
    """Mark a checkpoint as deleted; the caller removes its file after the commit.

    Raises:
        NotFound: there is no such checkpoint.
        Conflict: it is pinned, or an unfinished job or sweep needs it.
    """
    checkpoint = session.get(Checkpoint, checkpoint_id, with_for_update=True)  # a new job that needs it locks it, too
    if checkpoint is None or checkpoint.deleted_at is not None:
        raise NotFound(f"there is no checkpoint {checkpoint_id!r}")
    _check_owner(session, checkpoint)
    if checkpoint.pinned:
        raise Conflict("the checkpoint is pinned; unpin it first")
    if (user := users(session, [checkpoint]).get(checkpoint_id)) is not None:
        raise Conflict(f"{user} needs the checkpoint")
    session.execute(update(Checkpoint).where(Checkpoint.id == checkpoint_id).values(deleted_at=now_ms()))
    record(session, checkpoint.job_id, "checkpoint_deleted", {"step": checkpoint.step})
    _note(session, checkpoint, "delete")
    return checkpoint


def spare(session: Session, job_ids: Sequence[str]) -> list[Checkpoint]:
    """Return the checkpoints of some jobs that can be deleted while the newest good one of each job stays.

    They are not pinned, and no unfinished job or sweep needs them.
    """
    columns = (Checkpoint.job_id, Checkpoint.sha256, Checkpoint.size, Checkpoint.pinned, Checkpoint.storage_key)
    kept = select(Checkpoint).where(Checkpoint.job_id.in_(job_ids), is_good()).options(load_only(*columns))
    by_age = kept.order_by(Checkpoint.job_id, Checkpoint.step.desc(), Checkpoint.attempt.desc())
    rows = session.execute(by_age).scalars().all()
    newest_ids = {row.job_id: row.id for row in reversed(rows)}
    surplus = [row for row in rows if not row.pinned and row.id != newest_ids[row.job_id]]
    needed = users(session, surplus)
    return [row for row in surplus if row.id not in needed]


def remove_spare(session: Session, job_ids: Sequence[str]) -> list[Checkpoint]:
    """Mark the `spare` checkpoints of some jobs as deleted, and return them; the caller removes their files.

    The transaction may change the jobs.  A checkpoint that was pinned or deleted meanwhile is skipped.
    """
    unchanged = (Checkpoint.pinned.is_(False), Checkpoint.deleted_at.is_(None))
    ids = [row.id for row in spare(session, job_ids)]
    locked = select(Checkpoint.id).where(Checkpoint.id.in_(ids), *unchanged).with_for_update(skip_locked=True)
    free = set(session.execute(locked).scalars())
    # Again: a new job that needs a checkpoint holds its lock until it commits.
    rows = [row for row in spare(session, job_ids) if row.id in free]
    session.execute(
        update(Checkpoint).where(Checkpoint.id.in_([row.id for row in rows])).values(deleted_at=now_ms()),
        execution_options={"synchronize_session": False},
    )
    sizes: dict[str, list[int]] = {}
    for row in rows:
        record(session, row.job_id, "checkpoint_deleted", {"step": row.step})
        sizes.setdefault(row.job_id, []).append(row.size)
    for job_id, of_job in sizes.items():
        activity.note(session, "job.clean", job_id, checkpoints=len(of_job), size=sum(of_job))
    return rows


def users(session: Session, rows: Sequence[Checkpoint]) -> dict[str, str]:
    """Return those of the checkpoints that may not be deleted now, each with an unfinished job or sweep that needs it.

    An unfinished job needs its newest good checkpoint, the one before it unless it is paused, as a run may see that the
    newest one is damaged, and as many of the best ones as its spec keeps.
    """
    unfinished = select(Job).where(Job.id.in_({row.job_id for row in rows}), Job.status.not_in(TERMINAL))
    surplus: set[str] = set()
    jobs = {job.id: job for job in session.execute(unfinished).scalars()}
    for job in jobs.values():
        if job.kind == "pretrain" and isinstance(spec := parse_spec("pretrain", job.spec), PretrainSpec):
            keep_last = 1 if job.status == Status.PAUSED else 2
            surplus.update(row.id for row in _surplus(session, spec, job.id, keep_last, None))
    result = {row.id: f"job {row.job_id}" for row in rows if row.job_id in jobs and row.id not in surplus}
    return result | _users_elsewhere(session, rows)


def _users_elsewhere(session: Session, rows: Sequence[Checkpoint]) -> dict[str, str]:
    """Return those of the checkpoints that another unfinished job or a sweep needs, each with one of them."""
    user_of = {each.needed: each.user for each in needs.of_files(session, names_of(rows))}
    return {row.id: user_of[name] for row in rows for name in names_of([row]) if name in user_of}


def names_of(rows: Iterable[Checkpoint]) -> list[str]:
    """Return the names by which jobs and sweeps need the checkpoints."""
    return [name for row in rows for name in (row.sha256, row.id)]


# --- retention -----------------------------------------------------------------------------------------------------


def expire(session: Session, job_id: str) -> None:
    """Mark the job's checkpoints beyond those that its spec and the service (jobs.policies) keep as deleted.

    Checkpoints that are pinned, damaged or needed by an unfinished job are never marked, and do not count as kept.
    """
    job = session.get_one(Job, job_id)
    if job.kind != "pretrain":
        return
    rules = policies.stored(session)
    if (keep_last := _keep_last(job.spec.get("checkpoints", {}).get("keep_last"), rules)) is None:
        return
    spec = parse_spec("pretrain", job.spec)
    assert isinstance(spec, PretrainSpec)
    if not (surplus := _surplus(session, spec, job_id, keep_last, rules.most_checkpoints)):
        return
    # The lock comes before the query of needed ones: a new job that needs a checkpoint holds the lock until it commits.
    # A checkpoint that was pinned or deleted since the list was made is skipped.
    unchanged = (
        Checkpoint.id.in_([row.id for row in surplus]),
        Checkpoint.pinned.is_(False),
        Checkpoint.deleted_at.is_(None),
    )
    locked = select(Checkpoint.id).where(*unchanged).with_for_update(skip_locked=True)
    free = set(session.execute(locked).scalars()) - set(_users_elsewhere(session, surplus))
    session.execute(update(Checkpoint).where(Checkpoint.id.in_(free)).values(deleted_at=now_ms()))


def _keep_last(requested: int | None, rules: Policies) -> int | None:
    """Return the number of newest checkpoints to keep; None for all."""
    kept = rules.keep_checkpoints if requested is None else requested
    if rules.most_checkpoints is None:
        return kept
    return rules.most_checkpoints if kept is None else min(kept, rules.most_checkpoints)


def _surplus(session: Session, spec: PretrainSpec, job_id: str, keep_last: int, most: int | None) -> list[Checkpoint]:
    newest_first = [checkpoint for checkpoint in good(session, job_id) if not checkpoint.pinned]
    num_best = _num_best(spec) if most is None else min(_num_best(spec), most)
    kept = newest_first[:keep_last] + best_first(newest_first)[:num_best]
    return [checkpoint for checkpoint in newest_first if checkpoint not in kept]


def _num_best(spec: PretrainSpec) -> int:
    """Return the number of best checkpoints to keep; a planned evaluation of the best one needs one at the end."""
    return max(spec.checkpoints.keep_best, int(any(plan.when == "best" for plan in spec.evaluations)))


def orphans(session: Session, keys: Sequence[str]) -> list[str]:
    """Return those of the stored files that no row claims and no attempt can register any more.

    No clock is involved: only an open attempt can register a file, and each attempt has its own folder.

    Args:
        session: a reading transaction; there are two queries.
        keys: storage keys of some hundred jobs at most, listed before this transaction began.
    """
    job_ids = {key.split("/")[0] for key in keys}
    columns = select(Attempt.job_id, Attempt.number, Attempt.token, Attempt.ended_at)
    attempts = session.execute(columns.where(Attempt.job_id.in_(job_ids)))
    ended = {AttemptRef(job_id, number, token).folder: at is not None for job_id, number, token, at in attempts}
    checkpoints = select(Checkpoint.storage_key, Checkpoint.deleted_at).where(Checkpoint.job_id.in_(job_ids))
    artifacts = select(Artifact.storage_key, cast(null(), BigInteger)).where(Artifact.job_id.in_(job_ids))
    # The files of a deleted job stay until its purge, as it may be restored.
    rows = session.execute(checkpoints.union_all(artifacts), execution_options=SEES_HIDDEN)
    is_deleted = {path: deleted_at is not None for path, deleted_at in rows}
    return [key for key in keys if is_deleted.get(key, ended.get(key.rpartition("/")[0], False))]
