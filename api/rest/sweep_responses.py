"""Sweeps as clients see them: types, and rows into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import TypedDict

from api.rest.rendering import iso, iso_or_none
from api.rest.responses import Json, Named
from jobs import sweeps
from jobs.models import Sweep
from jobs.sweeps import Standing, TrialResult


class RungAnswer(TypedDict):
    """How many trials it takes, and for how many epochs; null: as many as the spec says."""

    trials: int
    epochs: int | None


class BestAnswer(TypedDict):
    """The trial that a sweep ended with; while it runs, the best of the furthest rung."""

    trial: int
    value: float
    settings: Json


class SweepSummary(TypedDict):
    """A sweep in a list; `status` is an open string.

    `held_out_share` of the train images is what the metric is measured on; at 0 that is the test split.
    """

    id: str
    name: str
    search: str
    status: str
    status_message: str | None
    preset: str | None
    parameters: Json
    metric: Json
    direction: str
    held_out_share: float
    seeds: list[int]
    seed: int
    eta: int | None
    rungs: list[RungAnswer]
    max_parallel: int
    trials: int
    dataset: Named
    options: Json
    best_trial: int | None
    best_value: float | None
    created_by: str | None
    created_at: str
    updated_at: str
    ended_at: str | None
    links: dict[str, str]


class RunAnswer(TypedDict):
    """One training of a trial with its evaluation; ids are of jobs."""

    seed: int
    job_id: str
    status: str
    evaluation_id: str | None
    evaluation_status: str | None
    value: float | None


class OutcomeAnswer(TypedDict):
    """What a trial came to at a rung; `value` is the mean over the seeds, once all are measured."""

    rung: int
    epochs: int | None
    state: str
    value: float | None
    runs: list[RunAnswer]


class TrialAnswer(TypedDict):
    """A trial; `state` is waiting, unfinished, measured, stopped, finished or failed, an open string."""

    number: int
    settings: Json
    state: str
    value: float | None
    rungs: list[OutcomeAnswer]


class SweepAnswer(SweepSummary):
    """A sweep with its trials; `spec` is what their settings are laid over."""

    spec: Json
    best: BestAnswer | None
    table: list[TrialAnswer]


class SweepPage(TypedDict):
    """A part of the list, newest first; `next_cursor` asks for the next one."""

    items: list[SweepSummary]
    next_cursor: str | None


def summary(sweep: Sweep, trials: int) -> SweepSummary:
    here = f"/v1/sweeps/{sweep.id}"
    return {
        "id": sweep.id,
        "name": sweep.name,
        "search": sweep.search,
        "status": sweep.status,
        "status_message": sweep.status_message,
        "preset": sweep.preset,
        "parameters": sweep.parameters,
        "metric": sweep.metric,
        "direction": sweep.direction,
        "held_out_share": sweeps.held_out_share(sweep.base, sweep.metric),
        "seeds": sweep.seeds,
        "seed": sweep.seed,
        "eta": sweep.eta if sweep.search == "halving" else None,
        "rungs": [{"trials": rung["trials"], "epochs": rung["epochs"]} for rung in sweep.rungs],
        "max_parallel": sweep.max_parallel,
        "trials": trials,
        "dataset": {"name": sweep.dataset_name, "digest": sweep.dataset_digest},
        "options": sweep.options,
        "best_trial": sweep.best_trial,
        "best_value": sweep.best_value,
        "created_by": sweep.created_by,
        "created_at": iso(sweep.created_at),
        "updated_at": iso(sweep.updated_at),
        "ended_at": iso_or_none(sweep.ended_at),
        "links": {"self": here, "page": f"/sweeps/{sweep.id}"},
    }


def answer(sweep: Sweep, table: Sequence[Standing]) -> SweepAnswer:
    return {
        **summary(sweep, len(table)),
        "spec": sweep.base,
        "best": _best(sweeps.leader(sweep, table)),
        "table": [_trial(sweep, standing) for standing in table],
    }


def _best(standing: Standing | None) -> BestAnswer | None:
    if standing is None or standing.value is None:
        return None
    return {"trial": standing.number, "value": standing.value, "settings": standing.settings}


def _trial(sweep: Sweep, standing: Standing) -> TrialAnswer:
    return {
        "number": standing.number,
        "settings": standing.settings,
        "state": standing.state,
        "value": standing.value,
        "rungs": [_outcome(rung, sweep.rungs[rung], outcome) for rung, outcome in enumerate(standing.by_rung)],
    }


def _outcome(number: int, rung: dict[str, Any], outcome: TrialResult) -> OutcomeAnswer:
    runs: list[RunAnswer] = [
        {
            "seed": run.place.seed,
            "job_id": run.job_id,
            "status": run.status,
            "evaluation_id": run.evaluation_id,
            "evaluation_status": run.evaluation_status,
            "value": run.value,
        }
        for run in outcome.runs
    ]
    return {"rung": number, "epochs": rung["epochs"], "state": outcome.state, "value": outcome.value, "runs": runs}
