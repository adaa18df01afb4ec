"""The page of usage: devices by key and month, and what uses the storage."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.rest.usage import usage_response
from api.web.render import page
from jobs import usage

router = APIRouter(include_in_schema=False)

_MONTHS_SHOWN = 12
_JOBS_SHOWN = 30


@router.get("/usage")
def usage_page(request: Request, reader: Reader, database: TheDatabase) -> Response:
    """Return the use of devices of the last months, and the stored files."""
    with database.read() as session:
        rows = [usage_response(row) for row in usage.monthly(session)]
        owners, jobs = usage.stored(session), usage.largest(session, _JOBS_SHOWN)
    months = sorted({row.month for row in rows}, reverse=True)[:_MONTHS_SHOWN]
    used = [row for row in rows if row.month in months]
    return page(request, "usage.html", used=used, owners=owners, jobs=jobs, size=sum(row.size for row in owners))
