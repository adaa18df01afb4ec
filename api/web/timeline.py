"""The timeline of a job: all its events as sentences, newest first, a number of events per page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.web import job
from api.web.events import MAX_EVENTS, Entry, entries_before
from api.web.job import Run
from api.web.render import page

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Timeline:
    """Part of a job's timeline; `first` and `last` are the numbers of its oldest and newest event."""

    run: Run
    entries: list[Entry]
    first: int
    last: int


def timeline(session: Session, job_id: str, before: int | None) -> Timeline:
    """Return the newest events of a job before an event number.

    Raises:
        NotFound: there is no such job.
    """
    run = job.run(session, job_id)
    end = run.job.event_seq + 1
    end = end if before is None else min(before, end)
    return Timeline(run, entries_before(session, job_id, end), max(1, end - MAX_EVENTS), end - 1)


@router.get("/jobs/{job_id}/timeline")
def timeline_page(
    request: Request,
    job_id: str,
    reader: Reader,
    database: TheDatabase,
    before: Annotated[int | None, Query(ge=1, lt=2**31)] = None,
) -> Response:
    """Return the page of a job's timeline."""
    with database.read() as session:
        view = timeline(session, job_id, before)
    sections = job.sections(view.run, f"/jobs/{job_id}")
    return page(request, "timeline.html", now=view.run.now, sections=sections, **vars(view))
