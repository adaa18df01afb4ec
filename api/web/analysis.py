"""The pages that look at several jobs together: comparison and leaderboard."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.web import compare as page_compare
from api.web import leaderboard as page_leaderboard
from api.web.configurations import arms
from api.web.picture import drawings
from api.web.render import page, picture
from jobs import curves, queries

router = APIRouter(include_in_schema=False)

_PICTURE_POINTS = 1000
_Ids = Annotated[list[str], Query(max_length=page_compare.MAX_JOBS)]


@router.get("/compare")
def compare(
    request: Request,
    reader: Reader,
    database: TheDatabase,
    job: _Ids = [],  # noqa: B006 (FastAPI copies it)
    group: _Ids = [],  # noqa: B006
) -> Response:
    """Runs over each other; without any, a choice of the newest."""
    with database.read() as session:
        found = page_compare.comparison(session, job, group)
    return page(request, "compare.html", found=found, now=found.now)


@router.get("/compare/curve.svg")
def curve_picture(
    reader: Reader,
    database: TheDatabase,
    name: Annotated[str, Query(max_length=100)],
    job: _Ids = [],  # noqa: B006
) -> Response:
    """One metric of several jobs as a picture, for browsers without scripts."""
    with database.read() as session:
        chosen = arms([queries.get_job(session, job_id) for job_id in job])
        points = max(1, _PICTURE_POINTS // max(1, len(job)))
        found = [
            (curves.metrics(session, each.id, [name], points).get(name, []), arm.number)
            for arm in chosen[: page_compare.MAX_ARMS]
            for each in arm.jobs
        ]
    return picture("curve.svg", **drawings(found, name))


@router.get("/leaderboard")
def leaderboard(
    request: Request,
    reader: Reader,
    database: TheDatabase,
    dataset: Annotated[str, Query(max_length=64)] = "",
    protocol: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """The best of what was measured, by dataset and protocol, beside published values."""
    with database.read() as session:
        found = page_leaderboard.leaderboard(session, dataset, protocol)
    return page(request, "leaderboard.html", found=found, now=found.now)
