"""Parts of a job: events, attempts, logs, curves, checkpoints, artifacts, evaluations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi import Response as HttpResponse
from fastapi.responses import JSONResponse
from pydantic import Field

from api.http import files
from api.http.auth import Reader
from api.http.dependencies import HeavySlot, TheDatabase, TheStorage
from api.rest import responses
from api.rest.responses import (
    ArtifactResponse,
    AttemptResponse,
    CheckpointResponse,
    EvaluationResponse,
    EventResponse,
    Json,
    LogResponse,
    NodeResponse,
    Response,
    SeriesResponse,
)
from api.rest.stored_files import open_artifact
from jobs import curves, devices, gangs, queries
from jobs.errors import FieldError, Invalid
from jobs.step_times import step_times
from wcl_core.protocol import ARTIFACT_NAME

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"])

_MAX_KEYS = 1_000
_MAX_NUMBER_DIGITS = 9  # the columns are 32 bits wide


_ArtifactName = Annotated[str, Path(pattern=ARTIFACT_NAME)]


class Events(Response):
    """Oldest first; `after` of the next request is the last `seq`."""

    items: list[EventResponse]


class Attempts(Response):
    """Oldest first."""

    items: list[AttemptResponse]


class Logs(Response):
    """In order; pass `next_after` as `after` to read on."""

    items: list[LogResponse]
    next_after: str | None


class Checkpoints(Response):
    """Newest first."""

    items: list[CheckpointResponse]


class Evaluations(Response):
    """Results of the job itself, and results of other jobs on its checkpoints."""

    items: list[EvaluationResponse]


class Metrics(Response):
    """One curve for each series; `times`, if requested, are some steps with the time of their report, in order."""

    series: list[SeriesResponse]
    times: list[Json] = Field(default_factory=list)


@router.get("/events")
def events(
    job_id: str,
    principal: Reader,
    database: TheDatabase,
    after: Annotated[int, Query(ge=0, lt=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=2000)] = 1000,
) -> Events:
    """List the events of the job, oldest first."""
    with database.read() as session:
        queries.get_job(session, job_id)
        return Events(items=[EventResponse.of(row) for row in queries.events_after(session, job_id, after, limit)])


@router.get("/attempts")
def attempts(job_id: str, principal: Reader, database: TheDatabase) -> Attempts:
    """List the executions of the job."""
    with database.read() as session:
        job = queries.get_job(session, job_id)
        held, rows = devices.by_attempt(session, job_id), queries.attempts(session, job_id)
        nodes = gangs.nodes_of(session, rows) if job.nodes > 1 else {}

        def node_responses(number: int) -> list[NodeResponse]:
            parts = devices.by_node(session, job_id, number) if number in nodes else {}
            return [
                NodeResponse.of(each, worker=each.worker_name, devices=parts.get(each.node, []))
                for each in nodes.get(number, ())
            ]

        return Attempts(
            items=[
                AttemptResponse.of(
                    row, worker=row.worker_name, devices=held.get(row.number, []), nodes=node_responses(row.number)
                )
                for row in rows
            ]
        )


@router.get("/logs")
def logs(
    job_id: str,
    principal: Reader,
    database: TheDatabase,
    after: Annotated[str | None, Query(description="`attempt.seq`: lines after this one.", max_length=40)] = None,
    limit: Annotated[int, Query(ge=1, le=5000)] = 500,
) -> Logs:
    """List the lines that the training run wrote; without `after` the last ones."""
    position = _position(after)
    with database.read() as session:
        queries.get_job(session, job_id)
        rows = queries.logs(session, job_id, position, limit)
    items = [LogResponse.of(row) for row in rows]
    return Logs(items=items, next_after=f"{rows[-1].attempt}.{rows[-1].seq}" if rows else after)


def _position(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(".")
    if len(parts) != 2 or not all(p.isascii() and p.isdigit() and len(p) <= _MAX_NUMBER_DIGITS for p in parts):
        raise Invalid(
            [FieldError("after", "expected ATTEMPT.SEQ, for example the `next_after` of the previous response")]
        )
    return int(parts[0]), int(parts[1])


@router.get("/checkpoints")
def checkpoints(job_id: str, principal: Reader, database: TheDatabase) -> Checkpoints:
    """List the registered checkpoints of the job."""
    with database.read() as session:
        queries.get_job(session, job_id)
        return Checkpoints(items=[responses.checkpoint(row) for row in queries.checkpoints(session, job_id)])


@router.get("/evaluations")
def evaluations(job_id: str, principal: Reader, database: TheDatabase) -> Evaluations:
    """List the evaluation results of the job and of its checkpoints."""
    with database.read() as session:
        queries.get_job(session, job_id)
        return Evaluations(items=responses.evaluations(session, queries.evaluations(session, job_id)))


@router.get("/metrics", response_model=Metrics)
def metrics(
    job_id: str,
    principal: Reader,
    database: TheDatabase,
    keys: Annotated[str | None, Query(description="Names of series, separated by commas.", max_length=2000)] = None,
    max_points: Annotated[int, Query(ge=1, le=1000, description="Maximum number of points of each series.")] = 1000,
    from_step: Annotated[int, Query(ge=0, le=curves.LAST_STEP)] = 0,
    to_step: Annotated[int, Query(ge=0, le=curves.LAST_STEP)] = curves.LAST_STEP,
    times: Annotated[bool, Query(description="Whether to also return times of steps.")] = False,
) -> HttpResponse:
    """Return the curves; where a job went back to a checkpoint, the newer attempt's points replace the older one's.

    The fewer steps are requested, the more detail is returned, down to each reported point.
    """
    names = [name for name in (keys or "").split(",") if name]
    if len(names) > _MAX_KEYS:
        raise Invalid([FieldError("keys", f"expected at most {_MAX_KEYS} names, not {len(names)}")])
    with database.read() as session:
        queries.get_job(session, job_id)
        by_name = curves.metrics(session, job_id, names or None, max_points, from_step, to_step)
        samples = step_times(session, job_id, first=from_step, last=to_step) if times else []
    body: Json = {"series": [responses.series(name, points) for name, points in by_name.items()]}
    if times:
        body["times"] = [responses.step_time(sample) for sample in samples]
    return JSONResponse(body)  # validating tens of thousands of points would take longer than reading them


class Artifacts(Response):
    """By name."""

    items: list[ArtifactResponse]


@router.get("/artifacts")
def artifacts(job_id: str, principal: Reader, database: TheDatabase) -> Artifacts:
    """List the artifacts of the job by name.  If several attempts wrote a name, the newest attempt's file counts."""
    with database.read() as session:
        queries.get_job(session, job_id)
        return Artifacts(items=[responses.artifact(row) for row in queries.artifacts(session, job_id)])


@router.head("/artifacts/{name}", include_in_schema=False)
@router.get("/artifacts/{name}", response_class=HttpResponse)
def artifact(
    job_id: str,
    name: _ArtifactName,
    request: Request,
    principal: Reader,
    database: TheDatabase,
    storage: TheStorage,
    slot: HeavySlot,
) -> HttpResponse:
    """Return the file of an artifact, `image/png` or `application/json`; the ETag is the sha256 of the bytes."""
    with database.read() as session:
        row = queries.get_artifact(session, job_id, name)
    file = open_artifact(storage, row)
    return files.respond(request, file, f'"{row.sha256}"', f"{row.job_id}-{row.name}", row.media_type)
