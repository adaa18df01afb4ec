"""Results of trials so far, read from their jobs and evaluations."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import and_, select
from sqlalchemy.orm import Session, aliased

from jobs.models import Evaluation, Job, JobEvaluation, Sweep
from jobs.status import TERMINAL, Status
from jobs.sweeps.trials import Place

State = Literal["unfinished", "measured", "failed"]


@dataclass(frozen=True)
class Run:
    """One training job of a trial, and its evaluation if there is one."""

    place: Place
    job_id: str
    status: str
    evaluation_id: str | None
    evaluation_status: str | None
    value: float | None

    @property
    def state(self) -> State:
        """Whether the run is unfinished, measured or failed.

        One transaction stores the training's success and submits the evaluation.  So an evaluation that is missing
        after the success never follows.
        """
        if self.status not in TERMINAL:
            return "unfinished"
        if self.status == Status.SUCCEEDED and self.evaluation_status not in (*TERMINAL, None):
            return "unfinished"
        return "failed" if self.value is None else "measured"


@dataclass(frozen=True)
class TrialResult:
    """A trial at a rung, over its seeds; it fails if any seed fails, so that all means are over the same seeds."""

    runs: Sequence[Run]

    @property
    def rung(self) -> int:
        return self.runs[0].place.rung

    @property
    def state(self) -> State:
        states = {run.state for run in self.runs}
        for state in ("unfinished", "failed"):
            if state in states:
                return state
        return "measured"

    @property
    def is_cancelled(self) -> bool:
        """Whether it failed only because jobs of it were cancelled."""
        failed = [run for run in self.runs if run.state == "failed"]
        return bool(failed) and all(Status.CANCELLED in (run.status, run.evaluation_status) for run in failed)

    @property
    def value(self) -> float | None:
        """Mean over the seeds; None while one is missing."""
        values = [run.value for run in self.runs if run.value is not None]
        return math.fsum(values) / len(values) if self.state == "measured" else None


TrialResults = dict[tuple[int, int], TrialResult]


def trial_results(session: Session, sweep: Sweep) -> TrialResults:
    """Return the results of the started trials, by trial and rung."""
    by_key: dict[tuple[int, int], list[Run]] = defaultdict(list)
    for run in _runs(session, sweep):
        by_key[run.place.trial, run.place.rung].append(run)
    return {key: TrialResult(sorted(runs, key=lambda run: run.place)) for key, runs in by_key.items()}


def _runs(session: Session, sweep: Sweep) -> Iterable[Run]:
    training, measuring = aliased(Job), aliased(Job)
    value = (
        select(Evaluation.value)
        .join(JobEvaluation, JobEvaluation.evaluation_id == Evaluation.id)
        .where(
            JobEvaluation.job_id == measuring.id,
            Evaluation.protocol == sweep.metric["protocol"],
            Evaluation.metric == sweep.metric["name"],
        )
        .limit(1)
        .scalar_subquery()
    )
    statement = (
        select(training.origin, training.id, training.status, measuring.id, measuring.status, value)
        .outerjoin(measuring, and_(measuring.parent_id == training.id, measuring.origin == evaluation_origin(sweep)))
        .where(training.sweep_id == sweep.id)
    )
    for origin, *facts in session.execute(statement):
        yield Run(Place.of(origin), *facts)


def evaluation_origin(sweep: Sweep) -> str:
    """Return the `origin` of the metric's planned evaluation, which follows those of the base spec."""
    return f"evaluations/{len(sweep.base.get('evaluations', ()))}/final"
