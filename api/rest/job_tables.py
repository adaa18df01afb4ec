"""The list of jobs as one CSV file, as filtered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.rest.csv_files import MEDIA_TYPE, described, headers, inert, written
from api.rest.responses import iso
from jobs import listing, queries
from jobs.database import Database
from jobs.models import Job
from jobs.queries import Filters
from wcl_core.protocol import KNN_TOP1

router = APIRouter(prefix="/v1", tags=["jobs"])

COLUMNS: Final = (
    *("id", "name", "kind", "status", "status_reason", "method", "dataset", "seed", "epochs", "tags", "starred"),
    *("knn_top1", "train_loss", "epoch", "attempt", "created_at", "started_at", "ended_at"),
    *("group_id", "sweep_id", "parent_id"),
)
_PAGE: Final = 100
_CSV: Final = described("A row for each job, newest first; an empty value is missing.")


@router.get("/jobs.csv", response_class=StreamingResponse, responses=_CSV)
def jobs_table(
    principal: Reader,
    database: TheDatabase,
    status: Annotated[list[str], Query(description="May be repeated.", max_length=20)] = [],  # noqa: B006
    kind: Annotated[str, Query(max_length=32)] = "",
    tag: Annotated[str, Query(max_length=64)] = "",
    q: Annotated[str, Query(description=queries.SEARCH, max_length=200)] = "",
    archived: Annotated[Literal["", "only", "all"], Query(description="By default, archived jobs are left out.")] = "",
    starred: Annotated[bool, Query(description="Only jobs with a star.")] = False,
    by: Annotated[str, Query(description="Name or id of the key that the jobs are of.", max_length=200)] = "",
    project: Annotated[str, Query(description="Name or id of the project that the jobs are of.", max_length=200)] = "",
) -> StreamingResponse:
    """Return all jobs that match, each by itself, newest first.

    A text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    filters = Filters(tuple(status), kind, tag, q, archived, starred, by, project)
    with database.read() as session:
        queries.check_filters(session, filters)
    return StreamingResponse(_lines(database, filters), media_type=MEDIA_TYPE, headers=headers("jobs.csv"))


def _lines(database: Database, filters: Filters) -> Iterator[str]:
    """Yield the file in parts of some jobs; no session is open while one is sent."""
    yield written([COLUMNS])
    cursor: str | None = None
    while True:
        with database.read() as session:
            page = queries.list_jobs(session, **asdict(filters), cursor=cursor, limit=_PAGE)
            rows = _rows(session, page.items)
        yield written(rows)
        if (cursor := page.next_cursor) is None:
            return


def _rows(session: Session, jobs: Sequence[Job]) -> list[tuple[object, ...]]:
    tags = queries.tags(session, [job.id for job in jobs])
    measured = listing.knn_accuracies(session, jobs)
    return [_row(job, tags[job.id], measured.get(job.id)) for job in jobs]


def _row(job: Job, tags: Sequence[str], measured: float | None) -> tuple[object, ...]:
    metrics, progress = job.latest_metrics or {}, job.progress or {}
    settings = [job.spec.get(name) for name in ("seed", "epochs")]
    times = [None if at is None else iso(at) for at in (job.created_at, job.started_at, job.ended_at)]
    texts = [job.name, job.kind, job.status, job.status_reason, job.spec.get("method"), job.dataset_name]
    numbers = (metrics.get(KNN_TOP1, measured), metrics.get("train/loss"), progress.get("epoch"), job.attempt)
    starred = "yes" if job.starred_at else ""
    ids = (job.group_id, job.sweep_id, job.parent_id)
    return (job.id, *map(inert, texts), *settings, inert(", ".join(tags)), starred, *numbers, *times, *ids)
