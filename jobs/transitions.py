"""Every change of a job's status, each one guarded statement; nothing else assigns one.

    claim           queued  -> running       a new open attempt
    deliver         running -> running, or where an `end` line leads
    end_attempt     running -> queued | paused | terminal     by its supervisor
    reap            running -> queued | failed                by an observer, when nobody renews the attempt
    cancel          blocked, queued, paused -> cancelled;     a running job is asked
    pause, resume   queued -> paused -> queued;               a running job is asked
    preempt         a running job is asked to give way
    unblock         blocked -> queued | failed

An attempt is open while `ended_at` is null.  Every transition out of running ends it in the same transaction, so the
fence at the start of `deliver` turns away whoever comes late.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, exists, func, or_, select, tuple_, update
from sqlalchemy.orm import Session, aliased

from jobs import ingest, plans, preemption
from jobs.database import now_ms
from jobs.dependencies import is_lost, is_met
from jobs.errors import Conflict, NotFound, Superseded
from jobs.events import record
from jobs.models import (
    DEFAULT_PROJECT,
    TRAINING,
    Attempt,
    Checkpoint,
    Dependency,
    Event,
    Job,
    Project,
    Worker,
)
from jobs.status import HELD, INFRASTRUCTURE, TERMINAL, Reason, Status


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


@dataclass(frozen=True)
class Requests:
    """What is asked of a running attempt; `timeout` once the job has run for as long as it may."""

    cancel: bool
    pause: bool
    preempt: bool
    timeout: bool = False


def _move(
    session: Session,
    job_id: str,
    before: frozenset[Status],
    after: Status,
    event: str,
    *,
    reason: str | None = None,
    message: str | None = None,
    data: dict[str, Any] | None = None,
    **values: Any,
) -> bool:
    """The guarded statement: succeeds only from a status in `before`, and appends the event it numbers."""
    if after in TERMINAL:
        values["ended_at"] = now_ms()
    statement = (
        update(Job)
        .where(Job.id == job_id, Job.status.in_(before))
        .values(
            status=after,
            status_reason=reason,
            status_message=message,
            event_seq=Job.event_seq + 1,
            updated_at=now_ms(),
            **values,
        )
        .returning(Job.event_seq)
    )
    seq = session.execute(statement, execution_options={"synchronize_session": False}).scalar_one_or_none()
    if seq is None:
        return False
    facts = {"status": after, "reason": reason, "message": message} | (data or {})
    session.add(Event(job_id=job_id, seq=seq, type=event, data={k: v for k, v in facts.items() if v is not None}))
    session.flush()
    return True


# --- claiming ------------------------------------------------------------------------------------------------------


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
    moved = _move(
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


# --- a running attempt ---------------------------------------------------------------------------------------------


def deliver(
    session: Session,
    job_id: str,
    number: int,
    lines: list[dict[str, Any]],
    output: list[tuple[int, str]] | None = None,
    *,
    max_failures: int = 3,
) -> Requests:
    """Store spool lines and output of an open attempt, and renew it.

    The first statement is fence, duplicate filter and renewal in one.  Lines already stored are skipped, so a delivery
    whose answer was lost may be repeated.

    Args:
        session: a writing transaction.
        job_id, number: the attempt.
        lines: records of the spool in order, without a gap; none to renew only.
        output: numbered lines of stdout and stderr.
        max_failures: infrastructure failures that end the job.

    Raises:
        Superseded: the attempt has ended.
    """
    lines = [ingest.clean(line) for line in _fence(session, job_id, number, lines)]
    end = ingest.store(session, job_id, number, lines, output or [])
    for line in lines:
        if line["type"] in _EVENTS:
            data = {key: value for key, value in line.items() if key not in ("type", "seq")}
            record(session, job_id, line["type"], {"attempt": number, **data})
    if end is not None:
        _close(session, job_id, number, end["reason"] or end["outcome"])
        _settle(session, job_id, number, end["outcome"], end["reason"], end["message"], max_failures)
    asked = select(Job.cancel_requested_at, Job.pause_requested_at, Job.preempt_requested_at, Job.max_seconds)
    cancel, pause, preempt, max_seconds = session.execute(asked.where(Job.id == job_id)).one()
    return Requests(
        cancel=cancel is not None,
        pause=pause is not None,
        preempt=preempt is not None,
        timeout=max_seconds is not None and _is_over_time(session, job_id),
    )


_EVENTS = frozenset({"started", "checkpoint", "warning"})


def _fence(session: Session, job_id: str, number: int, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pass, renewed, with the lines that are new; or raise Superseded."""
    if lines and lines[-1]["seq"] - lines[0]["seq"] != len(lines) - 1:
        raise ValueError(f"spool lines between {lines[0]['seq']} and {lines[-1]['seq']} are missing")
    if _renew(session, job_id, number, lines):
        return lines
    attempt = session.execute(
        select(Attempt.ended_at, Attempt.delivered_seq)
        .where(Attempt.job_id == job_id, Attempt.number == number)
        .with_for_update()  # a twin of this delivery may be under way
    ).one_or_none()
    if attempt is None or attempt.ended_at is not None:
        raise Superseded(f"attempt {number} of job {job_id} has ended")
    new = [line for line in lines if line["seq"] > attempt.delivered_seq]
    if new and new[0]["seq"] != attempt.delivered_seq + 1:
        raise ValueError(f"spool lines after {attempt.delivered_seq} are missing, got {new[0]['seq']}")
    if not _renew(session, job_id, number, new):
        raise Superseded(f"attempt {number} of job {job_id} changed hands")
    return new


def _renew(session: Session, job_id: str, number: int, lines: list[dict[str, Any]]) -> bool:
    statement = (
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.number == number, Attempt.ended_at.is_(None))
        .values(renewals=Attempt.renewals + 1)
    )
    if lines:
        statement = statement.where(Attempt.delivered_seq == lines[0]["seq"] - 1).values(delivered_seq=lines[-1]["seq"])
    result = session.execute(statement.returning(Attempt.number), execution_options={"synchronize_session": False})
    return result.scalar_one_or_none() is not None


def end_attempt(
    session: Session,
    job_id: str,
    number: int,
    outcome: str,
    reason: str | None = None,
    message: str | None = None,
    *,
    max_failures: int = 3,
) -> None:
    """End an open attempt whose process said nothing more: killed, stopped, never started.

    Raises:
        Superseded: the attempt has ended already.
    """
    if not _close(session, job_id, number, reason or outcome):
        raise Superseded(f"attempt {number} of job {job_id} has ended")
    _settle(session, job_id, number, outcome, reason, message, max_failures)


def reap(session: Session, job_id: str, number: int, renewals: int, *, max_failures: int = 3) -> bool:
    """End an attempt that its observer saw unrenewed for a whole lease; False when it was renewed meanwhile."""
    if not _close(session, job_id, number, Reason.WORKER_LOST, renewals):
        return False
    message = "its worker stopped renewing the attempt"
    _settle(session, job_id, number, "failed", Reason.WORKER_LOST, message, max_failures)
    return True


def _close(session: Session, job_id: str, number: int, reason: str, renewals: int | None = None) -> bool:
    statement = (
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.number == number, Attempt.ended_at.is_(None))
        .values(ended_at=now_ms(), end_reason=reason)
        .returning(Attempt.number)
    )
    if renewals is not None:
        statement = statement.where(Attempt.renewals == renewals)
    result = session.execute(statement, execution_options={"synchronize_session": False})
    return result.scalar_one_or_none() is not None


def _settle(
    session: Session,
    job_id: str,
    number: int,
    outcome: str,
    reason: str | None,
    message: str | None,
    max_failures: int,
) -> None:
    """Where the job goes when its attempt has ended: the one place that decides it."""
    # Locked before it is read: a request that commits in between would be cleared unseen.
    job = session.execute(
        select(
            Job.failures,
            Job.cancel_requested_at,
            Job.pause_requested_at,
            Job.preempt_requested_at,
            Job.max_seconds,
        )
        .where(Job.id == job_id)
        .with_for_update(key_share=True)
    ).one()
    failures = job.failures + (1 if reason in INFRASTRUCTURE else 0)
    cleared: dict[str, Any] = dict.fromkeys(("cancel_requested_at", "pause_requested_at", "preempt_requested_at"))
    pauses = outcome == "paused" or reason in HELD
    goes_on = pauses or outcome == "drained" or reason in INFRASTRUCTURE
    if outcome == "succeeded":
        after, reason = Status.SUCCEEDED, None
    elif outcome == "cancelled" or (goes_on and job.cancel_requested_at is not None):
        after, reason = Status.CANCELLED, Reason.USER
    elif goes_on and job.max_seconds is not None and _is_over_time(session, job_id):
        after, reason, message = Status.FAILED, Reason.TIMEOUT, f"it ran for the {job.max_seconds} s that it may"
    elif pauses or (goes_on and job.pause_requested_at is not None):
        # A run that pauses by itself says why; one that was asked to does not.
        after, reason = Status.PAUSED, (reason if pauses else None) or Reason.USER
    elif outcome == "drained":
        after, reason = Status.QUEUED, Reason.PREEMPTED if job.preempt_requested_at else Reason.WORKER_STOPPED
    elif goes_on and failures < max_failures:
        after = Status.QUEUED
        cleared["not_before"] = now_ms() + _wait_ms(failures)
    else:
        after, reason = Status.FAILED, reason or Reason.INTERNAL_ERROR
    _move(
        session,
        job_id,
        frozenset({Status.RUNNING}),
        after,
        "requeued" if after is Status.QUEUED else str(after),
        reason=reason,
        message=message,
        data={"attempt": number},
        failures=failures,
        **cleared,
    )
    if after is Status.SUCCEEDED:
        plans.at_success(session, job_id)


def _is_over_time(session: Session, job_id: str) -> bool:
    """Whether the job's attempts together have run for its `max_seconds`, by the database's clock."""
    spent = select(func.sum(func.coalesce(Attempt.ended_at, now_ms()) - Attempt.started_at)).where(
        Attempt.job_id == job_id
    )
    limit = select(Job.id).where(Job.id == job_id, Job.max_seconds * 1000 <= spent.scalar_subquery())
    return session.execute(limit).first() is not None


_FIRST_WAIT_SECONDS = 4.0
_LONGEST_WAIT_SECONDS = 600.0


def _wait_ms(failures: int) -> int:
    """How long a job waits after its n-th failure of the infrastructure: doubling, with jitter, up to ten minutes."""
    longest = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2.0 ** min(failures - 1, 30))
    return int(1000 * random.uniform(longest / 2, longest))


# --- requests of people --------------------------------------------------------------------------------------------

_WAITING = frozenset({Status.BLOCKED, Status.QUEUED, Status.PAUSED})


def cancel(session: Session, job_id: str) -> None:
    """Cancel a waiting job at once; ask a running one. Asking twice changes nothing.

    Raises:
        NotFound, Conflict: no such job; it has ended.
    """
    _lock(session, job_id)
    if _move(session, job_id, _WAITING, Status.CANCELLED, "cancelled", reason=Reason.USER):
        return
    _ask(session, job_id, "cancel")


def pause(session: Session, job_id: str) -> None:
    """Hold a queued job at once; ask a running one to save and stop.

    Raises:
        NotFound, Conflict: no such job; it is neither queued nor running.
    """
    _lock(session, job_id)
    if _move(session, job_id, frozenset({Status.QUEUED}), Status.PAUSED, "paused", reason=Reason.USER):
        return
    _ask(session, job_id, "pause")


def resume(session: Session, job_id: str) -> None:
    """Queue a paused job again.

    Raises:
        NotFound, Conflict: no such job; it is not paused.
    """
    if not _move(session, job_id, frozenset({Status.PAUSED}), Status.QUEUED, "resumed", not_before=None):
        raise _refusal(session, job_id, "resume")


def _lock(session: Session, job_id: str) -> None:
    """Hold the row, so that its run cannot end between the two statements that a request may need."""
    session.execute(select(Job.id).where(Job.id == job_id).with_for_update(key_share=True))


def _ask(session: Session, job_id: str, verb: str, **why: str) -> None:
    column = {
        "cancel": Job.cancel_requested_at,
        "pause": Job.pause_requested_at,
        "preempt": Job.preempt_requested_at,
    }[verb]
    statement = (
        update(Job)
        .where(Job.id == job_id, Job.status == Status.RUNNING, column.is_(None))
        .values({column: now_ms()})
        .returning(Job.id)
    )
    asked = session.execute(statement, execution_options={"synchronize_session": False}).scalar_one_or_none()
    if asked:
        record(session, job_id, f"{verb}_requested", why)
    elif session.execute(select(Job.status).where(Job.id == job_id)).scalar_one_or_none() != Status.RUNNING:
        raise _refusal(session, job_id, verb)


def _refusal(session: Session, job_id: str, verb: str) -> NotFound | Conflict:
    status = session.execute(select(Job.status).where(Job.id == job_id)).scalar_one_or_none()
    if status is None:
        return NotFound(f"there is no job {job_id}")
    return Conflict(f"cannot {verb} a job that is {status}")


# --- moves of observers --------------------------------------------------------------------------------------------


def preempt(session: Session) -> preemption.Preemption | None:
    """Ask a running job to give way to a waiting one, where one has to; observers take turns at it."""
    session.execute(select(Project.id).where(Project.id == DEFAULT_PROJECT).with_for_update())
    chosen = preemption.choose(session)
    if chosen is not None:
        _ask(session, chosen.job_id, "preempt", job=chosen.for_job_id)
    return chosen


def has_blocked(session: Session) -> bool:
    """Whether any job waits for another one."""
    return session.execute(select(Job.id).where(Job.status == Status.BLOCKED).limit(1)).first() is not None


def unblock(session: Session) -> int:
    """Move on every blocked job whose needed jobs have come far enough, or never will; how many moved."""
    needed = aliased(Job)
    needs = select(Dependency.job_id).join(needed, needed.id == Dependency.needs_job_id)
    own = needs.where(Dependency.job_id == Job.id)
    blocked = select(Job.id).where(Job.status == Status.BLOCKED).order_by(Job.id)  # all lock in the same order
    before = frozenset({Status.BLOCKED})
    failed = session.execute(blocked.where(exists(own.where(is_lost(needed))))).scalars().all()
    ready = session.execute(blocked.where(~exists(own.where(~is_met(needed))))).scalars().all()
    moved = [_move(session, job_id, before, Status.QUEUED, "queued") for job_id in ready]
    message = "a job it waits for did not come far enough"
    moved += [
        _move(session, job_id, before, Status.FAILED, "failed", reason=Reason.UPSTREAM_FAILED, message=message)
        for job_id in failed
    ]
    return sum(moved)
