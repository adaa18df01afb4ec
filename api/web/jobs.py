"""The list of jobs: filters, states and the workers that are alive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.web.job_view import JobView
from api.web.render import page
from jobs import queries, verdicts
from jobs.database import Database, database_time
from jobs.keys import Principal
from jobs.models import Job, Worker
from jobs.status import Status
from jobs.waiting import Waiting, explain

router = APIRouter(include_in_schema=False)

PAGE_SIZE = 50
MAX_EXPLAINED = 20
STATUSES = ("running", "queued", "blocked", "paused", "succeeded", "failed", "cancelled")
KINDS = ("pretrain", "evaluate")


@dataclass(frozen=True)
class Filters:
    status: tuple[str, ...] = ()
    kind: str = ""
    tag: str = ""
    q: str = ""
    cursor: str = ""

    @property
    def are_set(self) -> bool:
        return bool(self.status or self.kind or self.tag or self.q)

    def address(self, *, cursor: str) -> str:
        """Return the address of the list under these filters, from a cursor on."""
        pairs = [("status", name) for name in self.status]
        pairs += [("kind", self.kind), ("tag", self.tag), ("q", self.q), ("cursor", cursor)]
        query = urlencode([pair for pair in pairs if pair[1]])
        return f"/?{query}" if query else "/"


def _filters(
    status: Annotated[list[str], Query(max_length=20)] = [],  # noqa: B006 (FastAPI copies it)
    kind: str = "",
    tag: str = "",
    q: str = "",
    cursor: str = "",
) -> Filters:
    """Return the filters of a request; unknown states are dropped, so that links of later versions still open."""
    requested = {name for part in status for name in part.split(",")}
    return Filters(
        status=tuple(name for name in STATUSES if name in requested),
        kind=kind if kind in KINDS else "",
        tag=tag[:64],
        q=q.strip()[:200],
        cursor=cursor,
    )


_Filters = Annotated[Filters, Depends(_filters)]


@dataclass(frozen=True)
class JobList:
    """One page of the list, with the numbers and the workers above it."""

    jobs: list[JobView]
    next_cursor: str | None
    filters: Filters
    counts: dict[str, int]
    workers: list[Worker]
    working_on: dict[str, str]
    waiting: dict[str, Waiting]
    untrained: dict[str, float]  # kNN accuracy before the first step, by job
    is_empty_service: bool
    now: int


def job_list(session: Session, filters: Filters) -> JobList:
    """Return the newest jobs that match.

    Raises:
        Invalid: the cursor is not one of this service.
    """
    part = queries.list_jobs(
        session,
        status=filters.status,
        kind=filters.kind or None,
        tag=filters.tag or None,
        q=filters.q or None,
        cursor=filters.cursor or None,
        limit=PAGE_SIZE,
    )
    tags = queries.tags(session, [job.id for job in part.items])
    workers = queries.workers(session, alive_only=True)
    return JobList(
        jobs=[JobView(job, tags[job.id]) for job in part.items],
        next_cursor=part.next_cursor,
        filters=filters,
        counts=queries.counts_by_status(session),
        workers=workers,
        working_on=_job_names(session, workers),
        waiting=_waiting(session, part.items),
        untrained=verdicts.untrained_accuracies(session, [job.id for job in part.items]),
        is_empty_service=not part.items and session.execute(select(Job.id).limit(1)).first() is None,
        now=database_time(session),
    )


def _waiting(session: Session, jobs: Sequence[Job]) -> dict[str, Waiting]:
    """Return why jobs wait, by id; only for the first in the queue, since each explanation reads the queue."""
    waits = [job for job in jobs if job.status in (Status.QUEUED, Status.BLOCKED)][-MAX_EXPLAINED:]
    return {job.id: why for job in waits if (why := explain(session, job))}


def _job_names(session: Session, workers: Sequence[Worker]) -> dict[str, str]:
    """Return the names of the jobs that workers run, by id."""
    ids = [worker.job_id for worker in workers if worker.job_id]
    return dict(session.execute(select(Job.id, Job.name).where(Job.id.in_(ids))).all()) if ids else {}


@router.get("/")
def jobs_page(request: Request, filters: _Filters, reader: Reader, database: TheDatabase) -> Response:
    """Return the page of all jobs, newest first."""
    return _rendered(request, "jobs.html", filters, reader, database)


@router.get("/live")
def jobs_live(request: Request, filters: _Filters, reader: Reader, database: TheDatabase) -> Response:
    """Return the parts of the page that change."""
    return _rendered(request, "_jobs_live.html", filters, reader, database)


def _rendered(request: Request, template: str, filters: Filters, reader: Principal, database: Database) -> Response:
    with database.read() as session:
        view = job_list(session, filters)
    context: dict[str, Any] = {
        "list": view,
        "now": view.now,
        "may_submit": "submit" in reader.scopes,
        "statuses": STATUSES,
        "kinds": KINDS,
        "first_page": filters.address(cursor=""),
        "next_page": filters.address(cursor=view.next_cursor or ""),
    }
    return page(request, template, **context)
