"""What the lists show, read in one short session and detached from it before a template sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import queries
from jobs.database import now_ms
from jobs.models import Checkpoint, Job, Worker
from jobs.status import TERMINAL, Status
from jobs.waiting import Waiting, explain

PAGE_SIZE = 50
MAX_EXPLAINED = 20
STATUSES = ("running", "queued", "blocked", "paused", "succeeded", "failed", "cancelled")
KINDS = ("pretrain", "evaluate")
_NO_PROGRESS = dict.fromkeys(
    ("step", "total_steps", "epoch", "total_epochs", "images_per_second", "eta_seconds", "phase")
)


@dataclass(frozen=True)
class Filters:
    """What the list's URL says; unknown statuses are dropped, so that a link of tomorrow still opens."""

    status: tuple[str, ...] = ()
    kind: str = ""
    tag: str = ""
    q: str = ""
    cursor: str = ""

    @property
    def are_set(self) -> bool:
        return bool(self.status or self.kind or self.tag or self.q)

    def address(self, *, cursor: str) -> str:
        """The list under these filters, from a cursor on."""
        pairs = [("status", name) for name in self.status]
        pairs += [("kind", self.kind), ("tag", self.tag), ("q", self.q), ("cursor", cursor)]
        query = urlencode([pair for pair in pairs if pair[1]])
        return f"/?{query}" if query else "/"


@dataclass(frozen=True)
class JobView:
    """A job with what is derived from its row."""

    job: Job
    tags: list[str]

    @property
    def is_over(self) -> bool:
        return self.job.status in TERMINAL

    @property
    def request(self) -> str | None:
        """What its owner asked of the running attempt and it has not done yet."""
        if self.is_over:
            return None
        if self.job.cancel_requested_at is not None:
            return "cancelling"
        return "pausing" if self.job.pause_requested_at is not None else None

    @property
    def progress(self) -> dict[str, Any]:
        """The latest report; what it did not say is None."""
        return _NO_PROGRESS | (self.job.progress or {})

    @property
    def fraction(self) -> float | None:
        """Share of the steps that are done; None before the first report."""
        if self.job.status == Status.SUCCEEDED:
            return 1.0
        total = self.progress.get("total_steps")
        return min(1.0, (self.progress["step"] or 0) / total) if total else None

    @property
    def metrics(self) -> dict[str, Any]:
        return self.job.latest_metrics or {}

    @property
    def actions(self) -> list[str]:
        """The verbs its state allows."""
        if self.request == "cancelling":
            return []
        by_status = {
            "blocked": ["cancel"],
            "queued": ["pause", "cancel"],
            "running": ["cancel"] if self.request else ["pause", "cancel"],
            "paused": ["resume", "cancel"],
            "failed": ["retry"],
            "cancelled": ["retry"],
        }
        return by_status.get(self.job.status, [])

    @property
    def seconds(self) -> tuple[int, int | None] | None:
        """(start, end or None) of its work."""
        return None if self.job.started_at is None else (self.job.started_at, self.job.ended_at)


@dataclass(frozen=True)
class JobList:
    """One page of the list, and what surrounds it."""

    jobs: list[JobView]
    next_cursor: str | None
    filters: Filters
    counts: dict[str, int]
    workers: list[Worker]
    working_on: dict[str, str]
    waiting: dict[str, Waiting]
    is_empty_service: bool
    now: int


def job_list(session: Session, filters: Filters) -> JobList:
    """The newest jobs that match.

    Raises:
        Invalid: the cursor is not one of ours.
    """
    page = queries.list_jobs(
        session,
        status=filters.status,
        kind=filters.kind or None,
        tag=filters.tag or None,
        q=filters.q or None,
        cursor=filters.cursor or None,
        limit=PAGE_SIZE,
    )
    tags = queries.tags(session, [job.id for job in page.items])
    workers = queries.workers(session, alive_only=True)
    return JobList(
        jobs=[JobView(job, tags[job.id]) for job in page.items],
        next_cursor=page.next_cursor,
        filters=filters,
        counts=queries.counts_by_status(session),
        workers=workers,
        working_on=job_names(session, workers),
        waiting=_waiting(session, page.items),
        is_empty_service=not page.items and session.execute(select(Job.id).limit(1)).first() is None,
        now=database_time(session),
    )


def _waiting(session: Session, jobs: Sequence[Job]) -> dict[str, Waiting]:
    """Why they wait, by id; only of so many, since each one asks the queue."""
    waits = [job for job in jobs if job.status in (Status.QUEUED, Status.BLOCKED)][-MAX_EXPLAINED:]
    return {job.id: why for job in waits if (why := explain(session, job))}


def job_names(session: Session, workers: Sequence[Worker]) -> dict[str, str]:
    """Names of the jobs that workers are busy with, by id."""
    ids = [worker.job_id for worker in workers if worker.job_id]
    return dict(session.execute(select(Job.id, Job.name).where(Job.id.in_(ids))).all()) if ids else {}


def database_time(session: Session) -> int:
    """Ages are by the clock that wrote the times."""
    return session.execute(select(now_ms())).scalar_one()


@dataclass(frozen=True)
class CheckpointList:
    """Checkpoints with the names of their jobs."""

    rows: list[tuple[Checkpoint, str]]
    next_cursor: str | None
    is_pinned_only: bool
    now: int


def checkpoint_list(session: Session, cursor: str, is_pinned_only: bool) -> CheckpointList:
    """The newest checkpoints that are kept, from a cursor on: the last id seen."""
    statement = (
        select(Checkpoint, Job.name).join(Job, Job.id == Checkpoint.job_id).where(Checkpoint.deleted_at.is_(None))
    )
    if is_pinned_only:
        statement = statement.where(Checkpoint.pinned)
    if cursor:
        statement = statement.where(Checkpoint.id < cursor[:36])
    rows = [(row[0], row[1]) for row in session.execute(statement.order_by(Checkpoint.id.desc()).limit(PAGE_SIZE + 1))]
    more = rows[PAGE_SIZE - 1][0].id if len(rows) > PAGE_SIZE else None
    return CheckpointList(rows[:PAGE_SIZE], more, is_pinned_only, database_time(session))
