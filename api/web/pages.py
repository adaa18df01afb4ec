"""The pages that people see: rendered here, readable without scripts; scripts only keep them fresh.

Every page reads what it shows in one short session, closes it, and then renders.  `/live` and `/jobs/{id}/live` are the
parts of a page that change, rendered by the same templates.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from api.http.auth import Reader
from api.web import job, jobs
from api.web.hardware import hardware, is_hardware
from api.web.job import Run
from api.web.jobs import Filters
from api.web.picture import drawing
from api.web.render import page, picture
from api.web.timeline import EVENTS, entries_before
from jobs import curves
from jobs.database import Database
from jobs.keys import Principal
from wcl_core.config import Protocol

router = APIRouter(include_in_schema=False)


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _filters(
    status: Annotated[list[str], Query(max_length=20)] = [],  # noqa: B006 (FastAPI copies it)
    kind: str = "",
    tag: str = "",
    q: str = "",
    cursor: str = "",
) -> Filters:
    asked = {name for part in status for name in part.split(",")}
    return Filters(
        status=tuple(name for name in jobs.STATUSES if name in asked),
        kind=kind if kind in jobs.KINDS else "",
        tag=tag[:64],
        q=q.strip()[:200],
        cursor=cursor,
    )


_Filters = Annotated[Filters, Depends(_filters)]


# --- the list --------------------------------------------------------------------------------------------------------


@router.get("/")
def jobs_page(request: Request, filters: _Filters, reader: Reader) -> Response:
    """All jobs, newest first."""
    return _jobs(request, "jobs.html", filters, reader)


@router.get("/live")
def jobs_live(request: Request, filters: _Filters, reader: Reader) -> Response:
    """The parts of the list that change."""
    return _jobs(request, "_jobs_live.html", filters, reader)


def _jobs(request: Request, template: str, filters: Filters, reader: Principal) -> Response:
    with _database(request).read() as session:
        found = jobs.job_list(session, filters)
    context: dict[str, Any] = {
        "list": found,
        "now": found.now,
        "may_submit": "submit" in reader.scopes,
        "statuses": jobs.STATUSES,
        "kinds": jobs.KINDS,
        "first_page": filters.address(cursor=""),
        "next_page": filters.address(cursor=found.next_cursor or ""),
    }
    return page(request, template, **context)


# --- one job ---------------------------------------------------------------------------------------------------------


@router.get("/jobs/{job_id}")
def job_page(request: Request, job_id: str, reader: Reader) -> Response:
    """One job with everything it left behind."""
    with _database(request).read() as session:
        run = job.run(session, job_id)
        lines = job.logs(session, job_id)
    context = _run_context(run, reader) | {
        "lines": lines,
        "sections": job.sections(run),
        "pictures": sorted(name for name in run.view.metrics if not is_hardware(name)),
    }
    return page(request, "job.html", **context)


@router.get("/jobs/{job_id}/live")
def job_live(request: Request, job_id: str, reader: Reader) -> Response:
    """The parts of a job's page that change."""
    with _database(request).read() as session:
        run = job.run(session, job_id)
    return page(request, "_job_live.html", **_run_context(run, reader))


def _run_context(run: Run, reader: Principal) -> dict[str, Any]:
    protocols = get_args(Protocol)
    may_submit = "submit" in reader.scopes
    return {
        "run": run,
        "now": run.now,
        "may_submit": may_submit,
        "protocols": protocols,
        "hardware": hardware(run),
    }


@router.get("/jobs/{job_id}/timeline")
def timeline_page(
    request: Request, job_id: str, reader: Reader, before: Annotated[int | None, Query(ge=1, lt=2**31)] = None
) -> Response:
    """Everything that happened to a job, newest first, so many events a page."""
    with _database(request).read() as session:
        run = job.run(session, job_id)
        end = run.job.event_seq + 1 if before is None else min(before, run.job.event_seq + 1)
        entries = entries_before(session, job_id, end)
    context: dict[str, Any] = {
        "run": run,
        "sections": job.sections(run, f"/jobs/{job_id}"),
        "entries": entries,
        "first": max(1, end - EVENTS),
        "last": end - 1,
    }
    return page(request, "timeline.html", now=run.now, **context)


@router.get("/jobs/{job_id}/curve.svg")
def curve_picture(request: Request, job_id: str, name: str, reader: Reader) -> Response:
    """One metric as a picture, for browsers without scripts."""
    with _database(request).read() as session:
        points = curves.metrics(session, job_id, [name], max_points=300).get(name, [])
    return picture("curve.svg", **drawing(points, name))


# --- the service -----------------------------------------------------------------------------------------------------


@router.get("/checkpoints")
def checkpoints_page(request: Request, reader: Reader, pinned: str = "", cursor: str = "") -> Response:
    """Everything that can be downloaded."""
    with _database(request).read() as session:
        found = jobs.checkpoint_list(session, cursor, bool(pinned))
    return page(request, "checkpoints.html", list=found, now=found.now, may_submit="submit" in reader.scopes)
