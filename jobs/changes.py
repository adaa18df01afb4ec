"""Changes of jobs since a cursor: the source of all streams.

Events, points and log lines are append-only and numbered, so the rows between two cursors never change.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from jobs import queries
from jobs.curves import points_after
from jobs.errors import FieldError, Invalid, NotFound
from jobs.models import Attempt, Event, Job, Log, Worker
from jobs.status import Status
from jobs.transitions.outcomes import spent_ms


@dataclass(frozen=True)
class Cursor:
    """The position of a stream: the last event, the last record of an attempt, and the last line of its log."""

    event_seq: int
    attempt: int
    delivered_seq: int
    log_attempt: int = 0
    log_seq: int = 0

    @property
    def points(self) -> tuple[int, int]:
        return self.attempt, self.delivered_seq

    @property
    def logs(self) -> tuple[int, int]:
        return self.log_attempt, self.log_seq

    def covers(self, other: Cursor) -> bool:
        """Return whether a stream at this cursor has read everything before `other`."""
        return self.event_seq >= other.event_seq and self.points >= other.points and self.logs >= other.logs

    def __str__(self) -> str:
        return f"{self.event_seq}.{self.attempt}.{self.delivered_seq}.{self.log_attempt}.{self.log_seq}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Return the cursor that `str` wrote; three numbers, an older form, mean that no log line was read.

        Raises:
            Invalid: the text is malformed.
        """
        parts = text.split(".")
        if len(parts) not in (3, 5) or not all(p.isascii() and p.isdigit() and len(p) < 10 for p in parts):
            raise Invalid(
                [FieldError("Last-Event-ID", "expected five numbers with dots between them, as this stream sends them")]
            )
        return cls(*map(int, parts))


START = Cursor(0, 0, 0)


@dataclass(frozen=True)
class Mark:
    """The newest cursor of a job, and the columns that a stream shows; equal marks mean that nothing changed."""

    cursor: Cursor
    row: tuple[Any, ...]


def marks(session: Session, job_ids: Collection[str]) -> dict[str, Mark]:
    """Return the marks of jobs, read by one statement, without unknown ids."""
    is_over_time = and_(Job.max_seconds.is_not(None), Job.max_seconds * 1000 <= spent_ms(Job.id))
    shown = (
        Job.status,
        Job.updated_at,
        Job.cancel_requested_at,
        Job.pause_requested_at,
        Job.preempt_requested_at,
        Attempt.drain_requested_at,  # by the worker of a further node
        Worker.drain_requested_at,
        and_(Job.status == Status.RUNNING, is_over_time),
    )
    delivered = (func.coalesce(Attempt.delivered_seq, 0), func.coalesce(Attempt.log_seq, 0))
    statement = (
        select(Job.id, Job.event_seq, Job.attempt, *delivered, *shown)
        .outerjoin(Attempt, and_(Attempt.job_id == Job.id, Attempt.number == Job.attempt))
        .outerjoin(Worker, and_(Worker.id == Attempt.worker_id, Attempt.ended_at.is_(None)))
        .where(Job.id.in_(job_ids))
    )
    return {
        job_id: Mark(Cursor(event_seq, attempt, seq, attempt, log_seq), tuple(row))
        for job_id, event_seq, attempt, seq, log_seq, *row in session.execute(statement)
    }


def now_cursor(session: Session, job_id: str) -> Cursor:
    """Return the cursor for a stream that skips the past.

    Raises:
        NotFound: there is no such job.
    """
    by_id = marks(session, [job_id])
    if not by_id:
        raise NotFound(f"there is no job {job_id!r}")
    return by_id[job_id].cursor


@dataclass(frozen=True)
class Changes:
    """Changes of a job after a cursor, and the cursor after them; points are (attempt, name, step, value)."""

    events: Sequence[Event]
    points: Sequence[tuple[int, str, int, float | None]]
    logs: Sequence[Log]
    cursor: Cursor


def changes(session: Session, job_id: str, after: Cursor, until: Cursor, limit: int = 2_000) -> Changes:
    """Return the next changes of a job, at most `limit` of each kind.

    Args:
        until: a cursor that was read from the database before this session began, or in it.
    """
    events = queries.events_after(session, job_id, after.event_seq, limit, until.event_seq)
    points, attempt, seq = points_after(session, job_id, after.points, until.points, limit)
    logs = queries.logs_between(session, job_id, after.logs, until.logs, limit)
    last_event = events[-1].seq if len(events) == limit else max(after.event_seq, until.event_seq)
    last_log = (logs[-1].attempt, logs[-1].seq) if len(logs) == limit else max(after.logs, until.logs)
    return Changes(events, points, logs, Cursor(last_event, attempt, seq, *last_log))
