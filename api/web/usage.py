"""The page of usage: devices by key or project and month, and what uses the storage."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.rest.usage import By, usage_response
from api.web.render import page
from jobs import projects, usage

router = APIRouter(include_in_schema=False)

_MONTH = "^(20[0-9]{2}-(0[1-9]|1[0-2]))?$"  # an empty field of the form is none
_MONTHS_SHOWN = 12
_JOBS_SHOWN = 30
_VIEWS = (("key", "By key"), ("project", "By project"), ("key,project", "By key and project"))


@router.get("/usage")
def usage_page(
    request: Request,
    reader: Reader,
    database: TheDatabase,
    by: By = "key",
    first: Annotated[str, Query(alias="from", pattern=_MONTH)] = "",
    last: Annotated[str, Query(alias="to", pattern=_MONTH)] = "",
) -> Response:
    """Return the use of devices of the chosen months, by default the last ones, and the stored files."""
    with database.read() as session:
        used = usage.monthly(session, first or None, last or None, by=by.split(","))
        rows = [usage_response(row) for row in used]
        owners, jobs = usage.stored(session), usage.largest(session, _JOBS_SHOWN)
        in_projects, num_projects = usage.stored_in_projects(session), len(projects.every(session))
    months = sorted({row.month for row in rows}, reverse=True)[: None if first else _MONTHS_SHOWN]
    shown = [row for row in rows if row.month in months]
    context: dict[str, Any] = {
        "used": shown,
        "first": first,
        "last": last,
        "owners": owners,
        "in_projects": in_projects,
        "jobs": jobs,
        "by": by,
        "views": _VIEWS,
    }
    return page(request, "usage.html", **context, has_projects=num_projects > 1, size=sum(row.size for row in owners))
