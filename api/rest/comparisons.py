"""The comparison of jobs."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi import Response as HttpResponse

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.rest.csv_files import described, file, inert
from api.rest.responses import ContrastResponse, Response, contrast
from jobs.comparisons import MAX_JOBS, Row, comparison
from jobs.configurations import Configuration
from jobs.seed_groups import Result
from wcl_core.intervals import Difference

router = APIRouter(prefix="/v1/compare", tags=["jobs"])

COLUMNS: Final = (
    *("configuration", "method", "dataset", "protocol", "metric", "checkpoint", "settings"),
    *("mean", "low_95", "high_95", "num_seeds", "seeds", "values", "job_ids"),
)


class ConfigurationResponse(Response):
    """Jobs that differ in their seed only."""

    name: str
    method: str | None
    dataset: str
    seeds: list[int]
    job_ids: list[str]


class FieldResponse(Response):
    """A field of the spec that differs, with its value in each configuration."""

    field: str
    values: list[Any]


class OverSeeds(Response):
    """The values of one configuration by seed, their mean, and its 95 % t-interval."""

    seeds: list[int]
    values: list[float]
    mean: float
    interval: tuple[float, float] | None


class DifferenceResponse(Response):
    """The first of two configurations minus the second one, with its 95 % interval and the method of it."""

    value: float
    low: float
    high: float
    method: str
    is_shown: bool


class ToBeat(Response):
    """An accuracy that all configurations must beat: that of the largest class, raw pixels or the untrained network."""

    name: str
    value: float


class MeasureResponse(Response):
    """A measure with the result of each configuration, null where it was not measured.

    `rule` names the checkpoints that were measured, such as the last epoch.  `verdict` says for people whether the best
    configuration is shown to be better than the second one.  `difference` is null for more than two configurations.
    `reference` is the result of the dataset's reference.  `to_beat` has the measured baselines that
    all configurations share.
    """

    protocol: str
    metric: str
    title: str
    params: dict[str, Any]
    dataset: str
    rule: str
    results: list[OverSeeds | None]
    verdict: str | None
    difference: DifferenceResponse | None
    reference: OverSeeds | None
    to_beat: list[ToBeat]


class UnevaluatedResponse(Response):
    """A training that no evaluation has measured."""

    id: str
    name: str


class ComparisonResponse(Response):
    """Configurations side by side; `verdict` is about the best two by kNN accuracy, over every measure that both have.

    Where `verdict` is null, nothing can be compared: the `warnings` say why.  `reference` is the training that its
    dataset has as a reference, which may be one of these.  `unevaluated` are trainings without any result of an
    evaluation, where others have one.
    """

    verdict: ContrastResponse | None
    warnings: list[str]
    configurations: list[ConfigurationResponse]
    results: list[MeasureResponse]
    differing: list[FieldResponse]
    reference: ConfigurationResponse | None
    unevaluated: list[UnevaluatedResponse]


@router.get("")
def compare(
    principal: Reader,
    database: TheDatabase,
    job: Annotated[list[str], Query(min_length=1, max_length=MAX_JOBS, description="Ids of jobs.")],
    twin: Annotated[bool, Query(description="Whether to add the other seeds of each job, and its twin.")] = False,
) -> ComparisonResponse:
    """Compare jobs; those that differ in their seed only are one configuration."""
    with database.read() as session:
        compared = comparison(session, job, with_twin=twin)
    return ComparisonResponse(
        verdict=None if compared.contrast is None else contrast(compared.contrast),
        warnings=compared.warnings,
        configurations=[_configuration(each) for each in compared.configurations],
        results=[_measure(row) for row in compared.rows],
        differing=[FieldResponse.of(each) for each in compared.differences],
        reference=None if compared.reference is None else _configuration(compared.reference),
        unevaluated=[UnevaluatedResponse.of(each) for each in compared.unevaluated],
    )


@router.get(".csv", response_class=HttpResponse, responses=described("A row for each measure and configuration."))
def compare_table(
    principal: Reader,
    database: TheDatabase,
    job: Annotated[list[str], Query(min_length=1, max_length=MAX_JOBS, description="Ids of jobs.")],
    twin: Annotated[bool, Query(description="Whether to add the other seeds of each job, and its twin.")] = False,
) -> HttpResponse:
    """Return the results of a comparison as a CSV file: a row for each measure and configuration that has a value."""
    with database.read() as session:
        compared = comparison(session, job, with_twin=twin)
    rows = [
        _cells(row, configuration, result)
        for row in compared.rows
        for configuration, result in zip(compared.configurations, row.results, strict=True)
        if result is not None
    ]
    return file("comparison.csv", [COLUMNS, *rows])


def _cells(row: Row, of: Configuration, result: Result) -> tuple[object, ...]:
    measure = row.measure
    low, high = result.interval or (None, None)
    texts = (of.name, of.spec.get("method"), row.dataset, measure.protocol, measure.metric, measure.rule)
    seeds = " ".join(map(str, result.seeds))
    values = " ".join(map(str, result.values))
    ids = " ".join(member.id for member in of.jobs)
    return (*map(inert, texts), measure.params, result.mean, low, high, len(result.seeds), seeds, values, ids)


def _configuration(each: Configuration) -> ConfigurationResponse:
    return ConfigurationResponse(
        name=each.name,
        method=each.spec.get("method"),
        dataset=each.jobs[0].dataset_name,
        seeds=each.seeds,
        job_ids=[member.id for member in each.jobs],
    )


def _measure(row: Row) -> MeasureResponse:
    return MeasureResponse(
        protocol=row.measure.protocol,
        metric=row.measure.metric,
        title=row.measure.title,
        params=row.measure.settings,
        dataset=row.dataset,
        rule=row.measure.rule,
        results=[_over_seeds(each) for each in row.results],
        verdict=None if row.lead is None else row.lead.sentence,
        difference=_difference(row.difference),
        reference=_over_seeds(row.reference),
        to_beat=[ToBeat(name=name, value=value) for name, value in row.to_beat],
    )


def _over_seeds(result: Result | None) -> OverSeeds | None:
    return None if result is None else OverSeeds.of(result)


def _difference(compared: Difference | None) -> DifferenceResponse | None:
    return None if compared is None else DifferenceResponse(**compared._asdict(), is_shown=compared.is_shown)
