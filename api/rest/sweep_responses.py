"""Responses about sweeps, built from rows."""

from __future__ import annotations

from collections.abc import Sequence

from api.http.proxies import rooted
from api.rest.responses import DatasetVersion, Json, Response, Time
from jobs import sweeps
from jobs.models import Sweep
from jobs.sweeps import Standing
from wcl_core.config import result_title


class RungResponse(Response):
    """The number of trials and of epochs at a rung; null epochs stand for those of the spec."""

    trials: int
    epochs: int | None


class BestResponse(Response):
    """The best trial of a sweep; while the sweep runs, the best one at the highest rung with a value."""

    trial: int
    value: float
    settings: Json


class SweepSummary(Response):
    """A sweep in a list; `status` is an open string, and `metric_title` names the metric for people.

    The metric is measured on `held_out_share` of the train images; if that is 0, on the test split.
    """

    id: str
    name: str
    search: str
    status: str
    status_message: str | None
    preset: str | None
    parameters: Json
    metric: Json
    metric_title: str
    direction: str
    held_out_share: float
    seeds: list[int]
    seed: int
    eta: int | None
    rungs: list[RungResponse]
    max_parallel: int
    trials: int
    dataset: DatasetVersion
    options: Json
    best_trial: int | None
    best_value: float | None
    created_by: str | None
    created_at: Time
    updated_at: Time
    ended_at: Time | None
    links: dict[str, str]


class RunResponse(Response):
    """One training of a trial with its evaluation; ids are of jobs."""

    seed: int
    job_id: str
    status: str
    evaluation_id: str | None
    evaluation_status: str | None
    value: float | None


class OutcomeResponse(Response):
    """The result of a trial at a rung; `value` is the mean over the seeds, once all are measured."""

    rung: int
    epochs: int | None
    state: str
    value: float | None
    runs: list[RunResponse]


class TrialResponse(Response):
    """A trial; `state` is waiting, unfinished, measured, stopped, finished, failed or cancelled, an open string."""

    number: int
    settings: Json
    state: str
    value: float | None
    rungs: list[OutcomeResponse]


class SweepResponse(SweepSummary):
    """A sweep with its trials; `spec` is the base spec that each trial's settings override."""

    spec: Json
    best: BestResponse | None
    table: list[TrialResponse]


class SweepPage(Response):
    """A part of the list, newest first; `cursor=next_cursor` requests the next part."""

    items: list[SweepSummary]
    next_cursor: str | None


def summary(sweep: Sweep, trials: int) -> SweepSummary:
    return SweepSummary.of(sweep, **_beside_columns(sweep, trials))


def response(sweep: Sweep, table: Sequence[Standing]) -> SweepResponse:
    leader = sweeps.leader(sweep, table)
    best = None
    if leader is not None and leader.value is not None:
        best = BestResponse(trial=leader.number, value=leader.value, settings=leader.settings)
    trials = [_trial(sweep, standing) for standing in table]
    return SweepResponse.of(sweep, **_beside_columns(sweep, len(table)), spec=sweep.base, best=best, table=trials)


def _beside_columns(sweep: Sweep, trials: int) -> Json:
    return {
        "held_out_share": sweeps.held_out_share(sweep.base, sweep.metric),
        "eta": sweep.eta if sweep.search == "halving" else None,
        "trials": trials,
        "metric_title": result_title(sweep.metric["protocol"], sweep.metric["name"]),
        "dataset": {"name": sweep.dataset_name, "digest": sweep.dataset_digest},
        "links": {"self": rooted(f"/v1/sweeps/{sweep.id}"), "page": rooted(f"/sweeps/{sweep.id}")},
    }


def _trial(sweep: Sweep, standing: Standing) -> TrialResponse:
    rungs = [
        OutcomeResponse.of(
            outcome,
            epochs=sweep.rungs[rung]["epochs"],
            runs=[RunResponse.of(run, seed=run.place.seed) for run in outcome.runs],
        )
        for rung, outcome in enumerate(standing.by_rung)
    ]
    return TrialResponse.of(standing, rungs=rungs)
