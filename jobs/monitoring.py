"""What an operator watches: the queue, the ends of jobs and attempts of the last hour, workers and deliveries.

The numbers of the last hour come from the database, so they are the same on each server, and neither a restart nor the
deletion of old jobs changes their meaning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from jobs import queries
from jobs.database import now_ms
from jobs.eligibility import is_due
from jobs.models import Attempt, Job, Worker
from jobs.status import HELD, TERMINAL, Reason, Status
from jobs.webhooks import subscriptions

HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Snapshot:
    """The numbers at one moment; each has an entry for every state or reason, 0 where there is none.

    Attributes:
        jobs: jobs that have not ended, by status.
        paused: paused jobs by reason.
        oldest_due_seconds: by pool, the seconds for which the oldest job that could start has waited.
        jobs_ended: jobs that ended in the last hour, by status and reason; the reason of success is empty.
        attempts_started: claims of the last hour.
        attempts_ended: attempts that ended in the last hour, by reason, which is `succeeded` for a good end.
        workers: those that run.
        workers_lost: in the last hour.
        deliveries: messages of webhooks, by state.
    """

    jobs: Mapping[str, int]
    paused: Mapping[str, int]
    oldest_due_seconds: Mapping[str, float]
    jobs_ended: Mapping[tuple[str, str], int]
    attempts_started: int
    attempts_ended: Mapping[str, int]
    workers: list[Worker]
    workers_lost: int
    deliveries: Mapping[str, int]


def snapshot(session: Session) -> Snapshot:
    """Read the numbers; each statement reads a range of an index."""
    now = session.execute(select(now_ms())).scalar_one()
    since = now - HOUR_MS
    count = func.count()

    jobs = Counter({str(status): 0 for status in Status if status not in TERMINAL})
    jobs.update(queries.counts_by_status(session))
    paused = Counter({str(reason): 0 for reason in (Reason.USER, *sorted(HELD))})
    is_paused = Job.status == Status.PAUSED
    paused.update(_counts(session, select(Job.status_reason, count).where(is_paused).group_by(Job.status_reason)))
    waiting = select(Job.pool, func.min(Job.updated_at)).where(is_due()).group_by(Job.pool)

    jobs_ended = Counter({("succeeded", ""): 0, ("cancelled", Reason.USER.value): 0})
    jobs_ended.update({("failed", str(reason)): 0 for reason in Reason})
    ends = select(Job.status, Job.status_reason, count).where(Job.ended_at > since)
    for status, reason, number in session.execute(ends.group_by(Job.status, Job.status_reason)):
        jobs_ended[status, reason or ""] += number

    attempts_ended = Counter({str(reason): 0 for reason in (Status.SUCCEEDED, *Reason)})
    ended = select(Attempt.end_reason, count).where(Attempt.ended_at > since)
    attempts_ended.update(_counts(session, ended.group_by(Attempt.end_reason)))
    is_recent = or_(Attempt.ended_at.is_(None), Attempt.ended_at > since)
    started = select(count).select_from(Attempt).where(is_recent, Attempt.started_at > since)
    lost = select(count).select_from(Worker).where(Worker.state == "lost", Worker.seen_at > since)
    return Snapshot(
        jobs=jobs,
        paused=paused,
        oldest_due_seconds={pool: max(0, now - at) / 1000 for pool, at in session.execute(waiting)},
        jobs_ended=jobs_ended,
        attempts_started=session.execute(started).scalar_one(),
        attempts_ended=attempts_ended,
        workers=queries.workers(session, alive_only=True),
        workers_lost=session.execute(lost).scalar_one(),
        deliveries=subscriptions.counts_by_state(session),
    )


def _counts(session: Session, statement: Select[str | None, int]) -> Counter[str]:
    return Counter({reason or "": number for reason, number in session.execute(statement)})
