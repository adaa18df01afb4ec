"""The page that says what a deletion removes before it happens, and the page of deleted jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from api.http.auth import Admin, Owner, Submitter
from api.http.dependencies import TheDatabase, TheSettings
from api.rest.deletions import MOST, delete_jobs, matching
from api.web.jobs import filters_of_query
from api.web.render import page
from jobs import bulk, deletions
from jobs.database import Database, database_time

router = APIRouter(include_in_schema=False)

_Ids = Annotated[list[str], Query(max_length=MOST)]


@router.get("/delete")
def delete_page(
    request: Request,
    submitter: Submitter,
    database: TheDatabase,
    settings: TheSettings,
    job: _Ids = [],  # noqa: B006 (FastAPI copies it)
    group: _Ids = [],  # noqa: B006
    matches: Annotated[str, Query(alias="matching", max_length=2000)] = "",
) -> Response:
    """Return what the deletion of jobs removes, with a button; nothing is deleted yet."""
    ids = _chosen(database, job, group, matches)
    extent = delete_jobs(database, ids, submitter, dry_run=True)
    return page(request, "delete.html", extent=extent, days=settings.restore_days, is_done=False)


@router.post("/delete")
def delete(
    request: Request,
    submitter: Owner,
    database: TheDatabase,
    settings: TheSettings,
    job: Annotated[list[str], Form(max_length=MOST)] = [],  # noqa: B006
) -> Response:
    """Delete jobs; redirect to the list, or return which of them stay, and why."""
    extent = delete_jobs(database, job, submitter, dry_run=False)
    if extent.refused:
        return page(request, "delete.html", 409, extent=extent, days=settings.restore_days, is_done=True)
    return RedirectResponse("/", status_code=303)


def _chosen(database: Database, job_ids: list[str], group_ids: list[str], matches: str) -> list[str]:
    """Return the ids of selected jobs: those named, those of seed groups, or all that match a query."""
    if matches:
        return matching(database, filters_of_query(matches))
    with database.read() as session:
        return bulk.selected(session, job_ids, group_ids)[:MOST]


@router.get("/deleted")
def deleted_page(request: Request, admin: Admin, database: TheDatabase, settings: TheSettings) -> Response:
    """Return the page of deleted jobs."""
    with database.read() as session:
        records, now = deletions.records(session), database_time(session)
    return page(request, "deleted.html", records=records, days=settings.restore_days, now=now)


@router.post("/deleted/{job_id}/restore")
def restore(job_id: str, admin: Admin, database: TheDatabase) -> Response:
    """Restore a deleted job; redirect to its page."""
    database.write(lambda session: deletions.restore(session, job_id, admin))
    return RedirectResponse(f"/jobs/{job_id}", status_code=303)
