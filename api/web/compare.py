"""The page that compares jobs, and the pictures of their curves for browsers without scripts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.web.picture import drawings
from api.web.render import page, picture
from jobs import curves, queries
from jobs.comparisons import MAX_CONFIGURATIONS, MAX_JOBS, Comparison, chosen_jobs, comparison
from jobs.configurations import configurations_of
from jobs.database import database_time
from jobs.models import Job
from jobs.verdicts import sides
from wcl_core.config import method_title, twin_of

router = APIRouter(include_in_schema=False)

CHOICES = 100
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
    q: Annotated[str, Query(max_length=200)] = "",
    find: bool = False,
) -> Response:
    """Return the comparison of jobs and seed groups; without any, the newest jobs that have begun, to choose from.

    With `twin`, the other seeds of each job are added, and its twin. With `find`, the jobs are not compared: they stay
    chosen, beside those that a search finds.
    """
    with database.read() as session:
        chosen = chosen_jobs(session, list(dict.fromkeys(job))) if find else []
        shown = comparison(session, [] if find else job, [] if find else group, with_twin=twin)
        choices = [] if shown.configurations else _choices(session, q)
        begun = [each for each in choices if each.attempt]
        twin_offer = _twin_offer(session, shown)
        now = database_time(session)
    return page(
        request,
        "compare.html",
        comparison=shown,
        twin=twin_offer,
        chosen=chosen,
        choices=[each for each in begun if each.id not in {kept.id for kept in chosen}],
        num_waiting=len(choices) - len(begun),
        is_cut=len(choices) == CHOICES,
        namesakes={name for name, count in Counter(each.name for each in (*chosen, *begun)).items() if count > 1},
        q=q,
        metrics=sorted({name for job in shown.jobs for name in job.latest_metrics or {}}),
        now=now,
        may_submit="submit" in reader.scopes,
    )


@dataclass(frozen=True)
class TwinOffer:
    """The twin of the only configuration of a comparison.

    Attributes:
        job: of the configuration.
        method: title of the twin's method.
        exists: whether a twin has been submitted.
    """

    job: Job
    method: str
    exists: bool


def _twin_offer(session: Session, shown: Comparison) -> TwinOffer | None:
    """Return the twin to compare with; None for a comparison of several configurations."""
    if len(shown.configurations) != 1:
        return None
    job = shown.configurations[0].jobs[0]
    return TwinOffer(job, method_title(twin_of(job.spec["method"])), bool(sides(session, job)[1]))


def _choices(session: Session, q: str) -> list[Job]:
    """Return the newest training jobs whose name, id or dataset has this text."""
    return queries.list_jobs(session, kind="pretrain", q=q, limit=CHOICES).items


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
