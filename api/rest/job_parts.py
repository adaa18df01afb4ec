"""What a job left behind: events, attempts, logs, curves, checkpoints, evaluations."""

from __future__ import annotations

from typing import Annotated, NotRequired

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response
from typing_extensions import TypedDict

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.rest import rendering
from api.rest.responses import (
    AttemptAnswer,
    CheckpointAnswer,
    EvaluationAnswer,
    EventAnswer,
    Json,
    LogAnswer,
    SeriesAnswer,
)
from jobs import curves, queries
from jobs.errors import FieldError, Invalid
from jobs.step_times import step_times

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"])

_MAX_NUMBER_DIGITS = 9  # the columns are 32 bits wide


class Events(TypedDict):
    """Oldest first; `after` of the next request is the last `seq`."""

    items: list[EventAnswer]


class Attempts(TypedDict):
    """Oldest first."""

    items: list[AttemptAnswer]


class Logs(TypedDict):
    """In order; pass `next_after` as `after` to read on."""

    items: list[LogAnswer]
    next_after: str | None


class Checkpoints(TypedDict):
    """Newest first."""

    items: list[CheckpointAnswer]


class Evaluations(TypedDict):
    """What the job measured, and what other jobs measured on its checkpoints."""

    items: list[EvaluationAnswer]


class Metrics(TypedDict):
    """One curve a series; `times`, if asked for, are some of the steps with the time of their report, in order."""

    series: list[SeriesAnswer]
    times: NotRequired[list[Json]]


@router.get("/events")
def events(
    job_id: str,
    principal: Reader,
    database: TheDatabase,
    after: Annotated[int, Query(ge=0, lt=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=2000)] = 1000,
) -> Events:
    """Everything that happened to the job, numbered."""
    with database.read() as session:
        queries.get_job(session, job_id)
        return {"items": [rendering.event(row) for row in queries.events_after(session, job_id, after, limit)]}


@router.get("/attempts")
def attempts(job_id: str, principal: Reader, database: TheDatabase) -> Attempts:
    """Its executions."""
    with database.read() as session:
        queries.get_job(session, job_id)
        return {"items": [rendering.attempt(row) for row in queries.attempts(session, job_id)]}


@router.get("/logs")
def logs(
    job_id: str,
    principal: Reader,
    database: TheDatabase,
    after: Annotated[str | None, Query(description="`attempt.seq`: lines after this one.", max_length=40)] = None,
    limit: Annotated[int, Query(ge=1, le=5000)] = 500,
) -> Logs:
    """What the training run wrote; without `after` the last lines."""
    position = _position(after)
    with database.read() as session:
        queries.get_job(session, job_id)
        rows = queries.logs(session, job_id, position, limit)
    items = [rendering.log_line(row) for row in rows]
    return {"items": items, "next_after": f"{rows[-1].attempt}.{rows[-1].seq}" if rows else after}


def _position(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(".")
    if len(parts) != 2 or not all(p.isascii() and p.isdigit() and len(p) <= _MAX_NUMBER_DIGITS for p in parts):
        raise Invalid([FieldError("after", "expected `attempt.seq`, as `next_after` has it")])
    return int(parts[0]), int(parts[1])


@router.get("/checkpoints")
def checkpoints(job_id: str, principal: Reader, database: TheDatabase) -> Checkpoints:
    """Its registered checkpoints."""
    with database.read() as session:
        queries.get_job(session, job_id)
        return {"items": [rendering.checkpoint(row) for row in queries.checkpoints(session, job_id)]}


@router.get("/evaluations")
def evaluations(job_id: str, principal: Reader, database: TheDatabase) -> Evaluations:
    """Its measured numbers."""
    with database.read() as session:
        queries.get_job(session, job_id)
        return {"items": [rendering.evaluation(row) for row in queries.evaluations(session, job_id)]}


@router.get("/metrics", response_model=Metrics)
def metrics(
    job_id: str,
    principal: Reader,
    database: TheDatabase,
    keys: Annotated[str | None, Query(description="Names of series, separated by commas.", max_length=2000)] = None,
    max_points: Annotated[int, Query(ge=1, le=1000, description="Of each series.")] = 1000,
    from_step: Annotated[int, Query(ge=0, le=curves.LAST_STEP)] = 0,
    to_step: Annotated[int, Query(ge=0, le=curves.LAST_STEP)] = curves.LAST_STEP,
    times: Annotated[bool, Query(description="Whether times of steps are answered, too.")] = False,
) -> Response:
    """Curves; where a job went back to a checkpoint, the newer attempt's points replace the older one's.

    Fewer steps are answered in more detail, down to each point as it was reported.
    """
    names = [name for name in (keys or "").split(",") if name]
    with database.read() as session:
        queries.get_job(session, job_id)
        found = curves.metrics(session, job_id, names or None, max_points, from_step, to_step)
        samples = step_times(session, job_id, first=from_step, last=to_step) if times else []
    body: Metrics = {"series": [rendering.series(name, points) for name, points in found.items()]}
    if times:
        body["times"] = [rendering.step_time(sample) for sample in samples]
    return JSONResponse(body)  # as it is: checking tens of thousands of points would take longer than reading them
