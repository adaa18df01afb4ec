"""The page of usage: devices by key or project and month, and what uses the storage."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.rest.usage import By, usage_response
from api.web.render import page
from jobs import projects, usage

router = APIRouter(include_in_schema=False)

_MONTHS_SHOWN = 12
_JOBS_SHOWN = 30


@router.get("/usage")
def usage_page(request: Request, reader: Reader, database: TheDatabase, by: By = "key") -> Response:
    """Return the use of devices of the last months, and the stored files."""
    with database.read() as session:
        rows = [usage_response(row) for row in usage.monthly(session, by_project=by == "project")]
        owners, jobs = usage.stored(session), usage.largest(session, _JOBS_SHOWN)
        in_projects, num_projects = usage.stored_in_projects(session), len(projects.every(session))
    months = sorted({row.month for row in rows}, reverse=True)[:_MONTHS_SHOWN]
    used = [row for row in rows if row.month in months]
    context: dict[str, Any] = {"used": used, "owners": owners, "in_projects": in_projects, "jobs": jobs, "by": by}
    return page(request, "usage.html", **context, has_projects=num_projects > 1, size=sum(row.size for row in owners))
