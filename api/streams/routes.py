"""The routes of the streams."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.streams.responses import JobStream, ListStream, Streams
from jobs import changes
from jobs.changes import Cursor

router = APIRouter(prefix="/v1", tags=["streams"])

MAX_FOLLOWED = 100
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
    logs: Annotated[bool, Query(description="Whether to also send log lines.")] = False,
    last_event_id: Annotated[
        str | None, Query(description="The same as the header `Last-Event-ID`, for clients that cannot send it.")
    ] = None,
    header_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> JobStream:
    """Follow a job until it ends.

    The messages are `job` when a field changes, `event`, `metrics`, `logs` if requested, `progress`, and `end` with the
    final job.  Every message has an id.  Sent as `Last-Event-ID`, the id resumes the stream right after that message.
    """
    last_id = header_id or last_event_id
    cursor = Cursor.parse(last_id) if last_id else changes.START
    with database.read() as session:
        now = changes.now_cursor(session, job_id)
    if not last_id and start == "now":
        cursor = now
    if not logs:
        cursor = replace(cursor, log_attempt=now.log_attempt, log_seq=now.log_seq)
    return JobStream(_streams(request), principal, job_id, cursor, logs)


@router.get("/stream", response_class=StreamingResponse, responses=_STREAM)
def follow_list(
    request: Request,
    principal: Reader,
    database: TheDatabase,
    job: Annotated[
        list[str],
        Query(
            max_length=MAX_FOLLOWED,
            description="A job to follow as well: its id, or `ID@CURSOR` to resume after the message with that id.",
        ),
    ] = [],  # noqa: B006 (FastAPI copies it)
) -> ListStream:
    """Follow the lists: `changed` has the ids of jobs that changed, and `sweeps`, if present, those of sweeps.

    With `job`, the stream also carries the messages of these jobs, log lines included.  Each `subject` message has the
    place of a job in the request, from 0; the job's messages follow it.
    """
    with database.read() as session:
        followed = [_followed(session, text) for text in job]
    return ListStream(_streams(request), principal, followed)


def _followed(session: Session, text: str) -> tuple[str, Cursor]:
    job_id, _, last_id = text.partition("@")
    now = changes.now_cursor(session, job_id)
    return job_id, Cursor.parse(last_id) if last_id else now


def _streams(request: Request) -> Streams:
    return cast(Streams, request.app.state.streams)
