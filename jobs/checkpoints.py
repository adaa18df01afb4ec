"""Which checkpoints a job keeps, and which stored files belong to nobody any more.

    a checkpoint is registered     `expire` marks the rows that its job's `checkpoints.keep_…` leave over
    the transaction has committed  `orphans` names the files that no row claims; whoever asked removes them

So a crash in between leaves a marked row, which claims no file, and a file that the next question about orphans finds.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BigInteger, cast, null, or_, select, update
from sqlalchemy.orm import Session

from jobs.database import now_ms
from jobs.models import TRAINING, Artifact, Attempt, Checkpoint, Job
from jobs.planned_evaluations import BEST_METRIC
from jobs.status import TERMINAL
from wcl_core.config import PretrainSpec, parse_spec


def expire(session: Session, job_id: str) -> None:
    """Mark the job's checkpoints beyond those that its spec keeps as deleted.

    Never a pinned one, a damaged one, or one that a job needs which has not ended; those do not count as kept either.
    """
    job = session.get_one(Job, job_id)
    if job.kind != "pretrain" or job.spec.get("checkpoints", {}).get("keep_last") is None:
        return
    spec = parse_spec("pretrain", job.spec)
    assert isinstance(spec, PretrainSpec)
    surplus = _surplus(session, spec, job_id)
    # Locked before it is asked who needs them: a job that comes to need one holds it until it is there.
    # Whoever pinned or deleted one since the list was made has committed, or is passed by.
    is_still = (Checkpoint.id.in_(surplus), Checkpoint.pinned.is_(False), Checkpoint.deleted_at.is_(None))
    locked = select(Checkpoint.id).where(*is_still).with_for_update(skip_locked=True)
    free = set(session.execute(locked).scalars()) - _needed(session, surplus)
    session.execute(update(Checkpoint).where(Checkpoint.id.in_(free)).values(deleted_at=now_ms()))


def _surplus(session: Session, spec: PretrainSpec, job_id: str) -> list[str]:
    statement = (
        select(Checkpoint)
        .where(
            Checkpoint.job_id == job_id,
            Checkpoint.kind == TRAINING,
            Checkpoint.deleted_at.is_(None),
            Checkpoint.damaged_at.is_(None),
            Checkpoint.pinned.is_(False),
        )
        .order_by(Checkpoint.step.desc(), Checkpoint.attempt.desc())
    )
    newest_first = list(session.execute(statement).scalars())
    assert spec.checkpoints.keep_last is not None
    kept = newest_first[: spec.checkpoints.keep_last] + _best(newest_first, _num_best(spec))
    return [checkpoint.id for checkpoint in newest_first if checkpoint not in kept]


def _num_best(spec: PretrainSpec) -> int:
    """An evaluation of the best one needs it to be there in the end."""
    return max(spec.checkpoints.keep_best, int(any(plan.when == "best" for plan in spec.evaluations)))


def _best(newest_first: list[Checkpoint], count: int) -> list[Checkpoint]:
    measured = [each for each in reversed(newest_first) if each.metrics.get(BEST_METRIC) is not None]
    return sorted(measured, key=lambda each: -float(each.metrics[BEST_METRIC]))[:count]  # of equals the earliest


def _needed(session: Session, ids: Sequence[str]) -> set[str]:
    """Those that a job which has not ended begins from or evaluates."""
    evaluated = Job.spec["features"]["checkpoint_id"].as_string()
    needs = or_(Job.resume_checkpoint_id.in_(ids), evaluated.in_(ids))
    rows = session.execute(select(Job.resume_checkpoint_id, evaluated).where(Job.status.not_in(TERMINAL), needs))
    return {needed for row in rows for needed in row if needed is not None}


def orphans(session: Session, keys: Sequence[str]) -> list[str]:
    """Of stored files those that no row claims, and that no attempt can register any more; in two queries.

    No clock says so: only an open attempt can register a file, and each has a folder of its own.

    Args:
        keys: `JOB/ATTEMPT/NAME` each, of some hundred jobs at most, listed before this transaction began.
    """
    job_ids = {key.split("/")[0] for key in keys}
    attempts = select(Attempt.job_id, Attempt.number, Attempt.ended_at).where(Attempt.job_id.in_(job_ids))
    ended = {f"{job_id}/{number}": ended_at is not None for job_id, number, ended_at in session.execute(attempts)}
    checkpoints = select(Checkpoint.path, Checkpoint.deleted_at).where(Checkpoint.job_id.in_(job_ids))
    artifacts = select(Artifact.path, cast(null(), BigInteger)).where(Artifact.job_id.in_(job_ids))
    rows = session.execute(checkpoints.union_all(artifacts))
    is_deleted = {path: deleted_at is not None for path, deleted_at in rows}
    return [key for key in keys if is_deleted.get(key, ended.get(key.rpartition("/")[0], False))]
