"""The list of checkpoints that can be downloaded, newest first."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.web.render import page
from jobs.database import database_time
from jobs.models import Checkpoint, Job

router = APIRouter(include_in_schema=False)

PAGE_SIZE = 50


@dataclass(frozen=True)
class CheckpointList:
    """Checkpoints with the names of their jobs."""

    rows: list[tuple[Checkpoint, str]]
    next_cursor: str | None
    is_pinned_only: bool
    now: int


def checkpoint_list(session: Session, cursor: str, *, is_pinned_only: bool) -> CheckpointList:
    """Return the newest checkpoints that are kept, after a cursor: the id of the last one shown."""
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


@router.get("/checkpoints")
def checkpoints_page(
    request: Request, reader: Reader, database: TheDatabase, pinned: str = "", cursor: str = ""
) -> Response:
    """Return the page of all checkpoints, or of the pinned ones."""
    with database.read() as session:
        view = checkpoint_list(session, cursor, is_pinned_only=bool(pinned))
    return page(request, "checkpoints.html", list=view, now=view.now, may_submit="submit" in reader.scopes)
