"""The addresses of the streams; api.streams has what they send."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.streams.responses import JobStream, ListStream, Streams
from jobs import changes
from jobs.changes import Cursor

router = APIRouter(prefix="/v1", tags=["streams"])

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


@router.get("/jobs/{job_id}/stream", response_class=StreamingResponse, responses=_STREAM)
def follow_job(
    job_id: str,
    request: Request,
    principal: Reader,
    database: TheDatabase,
    start: Annotated[Literal["now", "start"], Query(alias="from")] = "now",
    logs: Annotated[bool, Query(description="Whether log lines are told, too.")] = False,
    last_event_id: Annotated[str | None, Query(description="As the header, for clients that cannot set one.")] = None,
    header_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> JobStream:
    """A job as it happens, until it ends.

    `job` when its fields change, `event`, `metrics`, `logs` if asked for, `progress`, and `end` with the final job.
    Every message has an id; sent back as `Last-Event-ID` it resumes right behind that message.
    """
    asked = header_id or last_event_id
    cursor = Cursor.parse(asked) if asked else changes.START
    with database.read() as session:
        now = changes.now_cursor(session, job_id)
    if not asked and start == "now":
        cursor = now
    if not logs:
        cursor = replace(cursor, log_attempt=now.log_attempt, log_seq=now.log_seq)
    return JobStream(_streams(request), principal.key_id, job_id, cursor, logs)


@router.get("/stream", response_class=StreamingResponse, responses=_STREAM)
def follow_list(request: Request, principal: Reader) -> ListStream:
    """Hints for lists: `changed` with the ids of jobs to read again, and `sweeps` with those of sweeps if there are."""
    return ListStream(_streams(request), principal.key_id)


def _streams(request: Request) -> Streams:
    return cast(Streams, request.app.state.streams)
