"""The page that compares jobs, and the pictures of their curves for browsers without scripts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.web.picture import drawings
from api.web.render import page, picture
from jobs import curves, queries
from jobs.comparisons import MAX_CONFIGURATIONS, MAX_JOBS, chosen_jobs, comparison
from jobs.configurations import configurations_of
from jobs.database import database_time

router = APIRouter(include_in_schema=False)

CHOICES = 40
_PICTURE_POINTS = 1000
_Ids = Annotated[list[str], Query(max_length=MAX_JOBS)]


@router.get("/compare")
def compare_page(
    request: Request,
    reader: Reader,
    database: TheDatabase,
    job: _Ids = [],  # noqa: B006 (FastAPI copies it)
    group: _Ids = [],  # noqa: B006
    twin: bool = False,
) -> Response:
    """Return the comparison of jobs and seed groups; without any, the newest jobs to choose from.

    With `twin`, the other seeds of each job are added, and its twin.
    """
    with database.read() as session:
        shown = comparison(session, job, group, with_twin=twin)
        choices = [] if shown.configurations else queries.list_jobs(session, kind="pretrain", limit=CHOICES).items
        now = database_time(session)
    metrics = sorted({name for job in shown.jobs for name in job.latest_metrics or {}})
    may_submit = "submit" in reader.scopes
    return page(
        request, "compare.html", comparison=shown, choices=choices, metrics=metrics, now=now, may_submit=may_submit
    )


@router.get("/compare/curve.svg")
def curve_picture(
    reader: Reader,
    database: TheDatabase,
    name: Annotated[str, Query(max_length=100)],
    job: _Ids = [],  # noqa: B006
) -> Response:
    """Return one metric of several jobs as a picture, for browsers without scripts."""
    with database.read() as session:
        chosen = configurations_of(chosen_jobs(session, job))
        points = max(1, _PICTURE_POINTS // max(1, len(job)))
        lines = [
            (curves.metrics(session, job.id, [name], points).get(name, []), each.number)
            for each in chosen[:MAX_CONFIGURATIONS]
            for job in each.jobs
        ]
    return picture("curve.svg", **drawings(lines, name))
