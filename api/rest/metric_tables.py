"""All metrics of a job, or of several jobs, as one CSV file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Final

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.rest.csv_files import MEDIA_TYPE, described, headers, written
from jobs import curves, queries
from jobs.comparisons import MAX_JOBS
from jobs.database import Database

router = APIRouter(prefix="/v1", tags=["jobs"])

COLUMNS = ("job_id", "metric", "step", "value", "attempt")
_PAGE = 5_000  # rows of one part of the file
_CSV: Final = described("Rows by job, metric and step; an empty value is missing.")


@router.get("/jobs/{job_id}/metrics.csv", response_class=StreamingResponse, responses=_CSV)
def of_job(job_id: str, principal: Reader, database: TheDatabase) -> StreamingResponse:
    """Return every reported point of every metric of the job; an older attempt's points end where the next resumed."""
    return _response(database, [job_id], f"{job_id}-metrics.csv")


@router.get("/metrics.csv", response_class=StreamingResponse, responses=_CSV)
def of_jobs(
    principal: Reader,
    database: TheDatabase,
    job: Annotated[list[str], Query(min_length=1, max_length=MAX_JOBS, description="An id; may be repeated.")],
) -> StreamingResponse:
    """Return every reported point of every metric of several jobs."""
    return _response(database, list(dict.fromkeys(job)), "metrics.csv")


def _response(database: Database, job_ids: Sequence[str], name: str) -> StreamingResponse:
    with database.read() as session:
        for job_id in job_ids:
            queries.get_job(session, job_id)
    return StreamingResponse(_lines(database, job_ids), media_type=MEDIA_TYPE, headers=headers(name))


def _lines(database: Database, job_ids: Sequence[str]) -> Iterator[str]:
    """Yield the file in parts; no session is open while one is sent."""
    yield written([COLUMNS])
    for job_id in job_ids:
        with database.read() as session:
            every, parts = curves.series_of(session, job_id), curves.parts(session, job_id, 0, curves.LAST_STEP)
        for series in every:
            for part in parts:
                points = curves.all_points(database, series, part)
                while rows := [(job_id, series.name, *point, part.attempt) for point in islice(points, _PAGE)]:
                    yield written(rows)
