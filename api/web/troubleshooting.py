"""The page that explains the reasons of a status, each with what to do."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.http.auth import Reader
from api.web.render import page
from jobs.reasons import EXPLANATIONS

router = APIRouter(include_in_schema=False)


@router.get("/troubleshooting")
def troubleshooting_page(request: Request, reader: Reader) -> Response:
    """Return the explanations of all reasons as a page."""
    return page(request, "troubleshooting.html", explanations=EXPLANATIONS)
