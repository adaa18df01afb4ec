"""The next status of a job whose attempt has ended: terminal, paused, or queued again, at once or after a backoff."""

from __future__ import annotations

import random
from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from jobs import planned_evaluations
from jobs.database import now_ms
from jobs.models import Attempt, Job
from jobs.status import HELD, INFRASTRUCTURE, Reason, Status
from jobs.transitions.status_change import move


def settle(
    session: Session,
    job_id: str,
    number: int,
    outcome: str,
    reason: str | None,
    message: str | None,
    max_failures: int,
) -> None:
    """Move the job to its next status after its attempt has ended; this is the only place that decides it."""
    # Locked before the read: otherwise a request that commits in between would be cleared unseen.
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
    is_paused = outcome == "paused" or reason in HELD
    may_continue = is_paused or outcome == "drained" or reason in INFRASTRUCTURE or reason == Reason.NODE_LATE
    if outcome == "succeeded":
        after, reason = Status.SUCCEEDED, None
    elif outcome == "cancelled" or (may_continue and job.cancel_requested_at is not None):
        after, reason = Status.CANCELLED, Reason.USER
    elif may_continue and job.max_seconds is not None and seconds_left(session, job_id) <= 0:
        after, reason, message = (
            Status.FAILED,
            Reason.TIMEOUT,
            f"it reached its limit of {job.max_seconds} s (`max_seconds`)",
        )
    elif reason in HELD and job.pause_requested_at is None:
        after = Status.PAUSED
        cleared["not_before"] = now_ms() + wait_ms(_num_held(session, job_id))
    elif is_paused or (may_continue and job.pause_requested_at is not None):
        # A run that pauses by itself gives a reason; a run that pauses on request gives none.
        after, reason = Status.PAUSED, (reason if is_paused and reason not in HELD else None) or Reason.USER
    elif outcome == "drained":
        after, reason = Status.QUEUED, Reason.PREEMPTED if job.preempt_requested_at else Reason.WORKER_STOPPED
    elif reason == Reason.NODE_LATE and (num_late := _num_late(session, job_id)) >= _MOST_LATE:
        after = Status.PAUSED
        message = f"{message}, in {num_late} attempts in a row; restart or drain that worker, then resume the job"
    elif reason == Reason.NODE_LATE:
        after = Status.QUEUED
        cleared["not_before"] = now_ms() + wait_ms(num_late)
    elif may_continue and failures < max_failures:
        after = Status.QUEUED
        cleared["not_before"] = now_ms() + wait_ms(failures)
    else:
        after, reason = Status.FAILED, reason or Reason.INTERNAL_ERROR
    move(
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
        planned_evaluations.at_success(session, job_id)


def _num_held(session: Session, job_id: str) -> int:
    """Return how many attempts of the job ended for want of a disk or storage."""
    held = select(func.count()).where(Attempt.job_id == job_id, Attempt.end_reason.in_(HELD))
    return session.execute(held).scalar_one()


def _num_late(session: Session, job_id: str) -> int:
    """Return how many attempts of the job in a row, up to the last one, ended because a worker did not begin."""
    is_late = Attempt.end_reason == Reason.NODE_LATE
    last_other = select(func.max(Attempt.number)).where(Attempt.job_id == job_id, ~is_late).scalar_subquery()
    late = select(func.count()).where(Attempt.job_id == job_id, Attempt.number > func.coalesce(last_other, 0), is_late)
    return session.execute(late).scalar_one()


def seconds_left(session: Session, job_id: str) -> float:
    """Return for how long the job's attempts may still run until they have run for `max_seconds` together.

    Running times are of their workers' monotonic clocks.  The job has a limit.
    """
    left = select(Job.max_seconds * 1000 - spent_ms(Job.id)).where(Job.id == job_id)
    milliseconds = session.execute(left).scalar_one()
    assert milliseconds is not None, "the job has a limit"
    return float(milliseconds) / 1000  # PostgreSQL sums to a decimal


def spent_ms(job_id: ColumnElement[str] | InstrumentedAttribute[str]) -> ScalarSelect[int]:
    """Return the running time of all attempts of a job, for use in a statement."""
    by_times = func.coalesce(Attempt.ended_at, now_ms()) - Attempt.started_at  # of workers of an older version
    spent = func.coalesce(func.sum(func.coalesce(Attempt.ran_ms, by_times)), 0)
    return select(spent).where(Attempt.job_id == job_id).correlate(Job).scalar_subquery()


_MOST_LATE = 5  # attempts in a row that a worker does not begin, before a user must act
_FIRST_WAIT_SECONDS = 4.0
_LONGEST_WAIT_SECONDS = 600.0


def wait_ms(failures: int) -> int:
    """Return the backoff after the n-th failure of its kind: doubling, with jitter, up to ten minutes."""
    longest = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2.0 ** min(failures - 1, 30))
    return int(1000 * random.uniform(longest / 2, longest))
