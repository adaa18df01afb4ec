"""The comparison of jobs: their curves, evaluations and spec differences, with warnings about unfair comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.web.configurations import Configuration, Measure, configurations_of, measured
from api.web.picture import drawings
from api.web.render import page, picture
from jobs import curves, queries, seed_groups
from jobs.database import database_time
from jobs.errors import FieldError, Invalid
from jobs.models import Dataset, Job
from jobs.seed_groups import Result
from jobs.status import TERMINAL
from wcl_core.config import protocol_facts
from wcl_core.config.overlay import leaves

router = APIRouter(include_in_schema=False)

MAX_CONFIGURATIONS, MAX_JOBS, CHOICES = 8, 40, 40
_PICTURE_POINTS = 1000
_Ids = Annotated[list[str], Query(max_length=MAX_JOBS)]
_BUDGET = {
    "epochs": "epochs",
    "batch_size": "batch size",
    "data.name": "dataset",
    "data.image_size": "image size",
    "backbone.name": "backbone",
    "backbone.width": "width",
    "multi_crop.crops": "small crops",
}


@dataclass(frozen=True)
class Difference:
    """A field of the spec with its value in each configuration."""

    field: str
    values: list[Any]


@dataclass(frozen=True)
class Row:
    """A measure with the result of each configuration; None where it was not measured."""

    measure: Measure
    dataset: str
    results: list[Result | None]


@dataclass(frozen=True)
class Comparison:
    configurations: list[Configuration]
    differences: list[Difference]
    rows: list[Row]
    warnings: list[str]
    metrics: list[str]
    choices: list[Job]
    now: int

    @property
    def jobs(self) -> list[Job]:
        return [job for each in self.configurations for job in each.jobs]


def comparison(session: Session, job_ids: Sequence[str], group_ids: Sequence[str]) -> Comparison:
    """Compare jobs and the jobs of seed groups.

    Raises:
        NotFound: there is no such job or group.
        Invalid: these are too many jobs for one page.
    """
    jobs = {job.id: job for job in _jobs(session, job_ids)}
    jobs |= {job.id: job for group_id in group_ids for job in seed_groups.members(session, group_id)}
    chosen = configurations_of(list(jobs.values()))
    if len(chosen) > MAX_CONFIGURATIONS or len(jobs) > MAX_JOBS:
        detail = f"expected at most {MAX_CONFIGURATIONS} configurations and {MAX_JOBS} jobs, not {len(chosen)} and "
        raise Invalid([FieldError("job", f"{detail}{len(jobs)}")])
    rows = _rows(session, chosen)
    metrics = sorted({name for job in jobs.values() for name in job.latest_metrics or {}})
    return Comparison(
        configurations=chosen,
        differences=list(_differences(chosen)),
        rows=rows,
        warnings=[*_warnings(chosen, rows)],
        metrics=metrics,
        choices=[] if chosen else queries.list_jobs(session, kind="pretrain", limit=CHOICES).items,
        now=database_time(session),
    )


def _jobs(session: Session, job_ids: Sequence[str]) -> list[Job]:
    """Return the jobs in the order of their ids, read by one statement.

    Raises:
        NotFound: there is no job with one of the ids.
    """
    rows = session.execute(select(Job).where(Job.id.in_(job_ids))).scalars()
    by_id = {job.id: job for job in rows}
    return [by_id.get(job_id) or queries.get_job(session, job_id) for job_id in job_ids]


def _differences(chosen: Sequence[Configuration]) -> Iterator[Difference]:
    tables = [dict(leaves(each.spec)) for each in chosen]
    for field in dict.fromkeys(name for table in tables for name in table):
        values = [table.get(field) for table in tables]
        if any(value != values[0] for value in values):
            yield Difference(field, values)


def _rows(session: Session, chosen: Sequence[Configuration]) -> list[Row]:
    table: dict[Measure, list[Result | None]] = {}
    for configuration, measure, result in measured(session, chosen):
        table.setdefault(measure, [None] * len(chosen))[configuration.number - 1] = result
    names = dict(session.execute(select(Dataset.digest, Dataset.name)).all())
    rows = [Row(m, names.get(m.dataset_digest, f"{m.dataset_digest[:12]}…"), results) for m, results in table.items()]
    return sorted(rows, key=lambda row: (row.dataset, row.measure.rule != "last epoch", row.measure.title))


def _warnings(chosen: Sequence[Configuration], rows: Sequence[Row]) -> Iterator[str]:
    if len(chosen) < 2:
        return
    yield from _budgets(chosen)
    yield from _protocols(chosen, rows)
    if any(row.measure.rule == "last epoch" for row in rows):
        alone = [each.name for each in chosen if len(each.seeds) == 1]
        if alone:
            yield f"Only one seed: {', '.join(alone)}. Differences may be noise."
    unfinished = [job.name for each in chosen for job in each.jobs if job.status not in TERMINAL]
    if unfinished:
        yield f"Not finished: {', '.join(unfinished[:5])}{' and more' if len(unfinished) > 5 else ''}."


def _budgets(chosen: Sequence[Configuration]) -> Iterator[str]:
    tables = [dict(leaves(each.spec)) for each in chosen]
    differing = []
    for field, name in _BUDGET.items():
        values = [str(table.get(field, "–")) for table in tables]
        if len(set(values)) > 1:
            differing.append(f"{name} {' / '.join(values)}")
    if differing:
        yield f"Different budgets: {'; '.join(differing)}."
    digests = {each.jobs[0].dataset_digest for each in chosen}
    names = {each.jobs[0].dataset_name for each in chosen}
    if len(digests) > len(names):
        yield "The dataset changed between these jobs: one name, different digests."


def _protocols(chosen: Sequence[Configuration], rows: Sequence[Row]) -> Iterator[str]:
    """Warn of protocols with which not all configurations were measured alike; one sentence for each cause."""
    unmeasured: dict[str, list[str]] = {}  # protocols by configuration
    at_epochs: dict[str, list[str]] = {}  # protocols by the epochs that were measured
    others: list[str] = []
    for name in dict.fromkeys(row.measure.protocol for row in rows):
        own = [row for row in rows if row.measure.protocol == name]
        title = protocol_facts(name).title
        present = [place for place in range(len(chosen)) if any(row.results[place] for row in own)]
        for place in sorted(set(range(len(chosen))) - set(present)):
            unmeasured.setdefault(chosen[place].name, []).append(title)
        if any(all(row.results[place] for place in present) for row in own):
            continue
        rules = {place: ", ".join(sorted({row.measure.rule for row in own if row.results[place]})) for place in present}
        if len(set(rules.values())) > 1:
            places = "; ".join(f"{chosen[place].name}: {rule}" for place, rule in rules.items())
            at_epochs.setdefault(places, []).append(title)
        else:
            others.append(title)
    for name, titles in unmeasured.items():
        yield f"{name} was not measured with {', '.join(titles)}. Evaluate it on its page."
    for places, titles in at_epochs.items():
        yield f"Measured at different epochs with {', '.join(titles)}: {places}. Measure the last epoch of each."
    if others:
        yield f"Measured with different settings of {', '.join(others)}: no line has a result of each."


@router.get("/compare")
def compare_page(
    request: Request,
    reader: Reader,
    database: TheDatabase,
    job: _Ids = [],  # noqa: B006 (FastAPI copies it)
    group: _Ids = [],  # noqa: B006
) -> Response:
    """Return the comparison of jobs and seed groups; without any, the newest jobs to choose from."""
    with database.read() as session:
        view = comparison(session, job, group)
    return page(request, "compare.html", comparison=view, now=view.now)


@router.get("/compare/curve.svg")
def curve_picture(
    reader: Reader,
    database: TheDatabase,
    name: Annotated[str, Query(max_length=100)],
    job: _Ids = [],  # noqa: B006
) -> Response:
    """Return one metric of several jobs as a picture, for browsers without scripts."""
    with database.read() as session:
        chosen = configurations_of(_jobs(session, job))
        points = max(1, _PICTURE_POINTS // max(1, len(job)))
        lines = [
            (curves.metrics(session, job.id, [name], points).get(name, []), each.number)
            for each in chosen[:MAX_CONFIGURATIONS]
            for job in each.jobs
        ]
    return picture("curve.svg", **drawings(lines, name))
