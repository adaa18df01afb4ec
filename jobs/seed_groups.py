"""Groups: jobs that differ in their seed alone, and what their evaluations say taken together."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.checkpoints import BEST_METRIC
from jobs.errors import NotFound
from jobs.models import Checkpoint, Evaluation, Job, JobEvaluation
from jobs.planned_evaluations import BEST_ORIGIN

CONFIDENCE = 0.95
SELECTED_ON_TEST = f"best {BEST_METRIC}, selected on test"


@dataclass(frozen=True)
class Result:
    """One number over the seeds.

    Attributes:
        epoch: of the measured checkpoints; None where other features were measured, or where each seed has its own.
        selection: how each seed's checkpoint was chosen where that was not by its epoch.
        evaluation_seed: of the evaluation's own draws; None where it is the job's seed.
        seeds, values: of the jobs that have it, by seed.
        deviation: of the sample; None for a single value.
        interval: 95 % t-interval of the mean; None for a single value.
    """

    protocol: str
    protocol_version: int
    metric: str
    params: dict[str, Any]
    dataset_digest: str
    epoch: int | None
    selection: str | None
    evaluation_seed: int | None
    seeds: list[int]
    values: list[float]
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None


def members(session: Session, group_id: str) -> list[Job]:
    """The group's jobs, oldest first.

    Raises:
        NotFound: there is no such group.
    """
    found = list(session.execute(select(Job).where(Job.group_id == group_id).order_by(Job.id)).scalars())
    if not found:
        raise NotFound(f"there is no group {group_id}")
    return found


def results(session: Session, jobs: Sequence[Job]) -> list[Result]:
    """Every number that was measured, over the seeds; of two jobs of one seed, as after a retry, the newer counts.

    Numbers are taken together when protocol, version, parameters, metric, dataset and the checkpoints' epoch agree, or,
    for what a plan of the best checkpoint has brought about, that plan in place of the epoch.
    """
    newest = {int(job.spec["seed"]): job for job in jobs}  # oldest first, so a newer one replaces it
    table: dict[tuple[Any, ...], dict[int, float]] = defaultdict(dict)
    asked: dict[tuple[Any, ...], dict[str, Any]] = {}
    for seed, job in sorted(newest.items()):
        for evaluation, epoch, selection in _measured(session, job):
            if evaluation.value is None:
                continue
            own_seed = None if job.kind == "evaluate" else evaluation.seed
            params = json.dumps(evaluation.params, sort_keys=True)
            names = (evaluation.protocol, evaluation.protocol_version, evaluation.metric, params)
            key = (*names, evaluation.dataset_digest, epoch, selection, own_seed)
            table[key][seed] = evaluation.value
            asked[key] = evaluation.params
    return [_result(key, asked[key], values) for key, values in table.items()]


def _measured(session: Session, job: Job) -> Iterator[tuple[Evaluation, int | None, str | None]]:
    """With epoch and selection: a training job's checkpoints were measured by others, an evaluation measured itself."""
    if job.kind == "evaluate":
        link = select(JobEvaluation.evaluation_id).where(JobEvaluation.job_id == job.id)
        own = select(Evaluation).where(Evaluation.id.in_(link)).order_by(Evaluation.id)
        yield from ((evaluation, None, None) for evaluation in session.execute(own).scalars())
        return
    of_checkpoints = (
        select(Evaluation, Checkpoint.epoch, Job)
        .join(Checkpoint, Checkpoint.sha256 == Evaluation.features_digest)
        .join(JobEvaluation, JobEvaluation.evaluation_id == Evaluation.id)
        .join(Job, Job.id == JobEvaluation.job_id)
        .where(Checkpoint.job_id == job.id)
        .order_by(Evaluation.id)
    )
    for evaluation, epoch, measuring in session.execute(of_checkpoints):
        if _measures_the_best(session, measuring, job.id):
            yield evaluation, None, SELECTED_ON_TEST
        else:
            yield evaluation, epoch, None


def _measures_the_best(session: Session, measuring: Job, trained_id: str) -> bool:
    """Whether a plan of the best checkpoint has brought it about, or it copies such a job with its checkpoint."""
    planned: Job | None = measuring
    while planned is not None and planned.kind == "evaluate" and planned.parent_id != trained_id:
        planned = session.get(Job, planned.parent_id) if planned.parent_id else None
    return (
        planned is not None
        and BEST_ORIGIN.fullmatch(planned.origin or "") is not None
        and planned.spec["features"] == measuring.spec["features"]
    )


def _result(key: tuple[Any, ...], params: dict[str, Any], by_seed: dict[int, float]) -> Result:
    protocol, version, metric, _, digest, epoch, selection, own_seed = key
    seeds, values = list(by_seed), list(by_seed.values())
    facts = (protocol, version, metric, params, digest, epoch, selection, own_seed)
    return Result(*facts, seeds, values, *summary(values))


def summary(values: Sequence[float]) -> tuple[float, float | None, tuple[float, float] | None]:
    """Mean, standard deviation of the sample, and the 95 % t-interval of the mean."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None, None
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(0.5 + CONFIDENCE / 2, n - 1) * deviation / math.sqrt(n)
    return mean, deviation, (mean - half, mean + half)


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t by bisection of its distribution.

    Args:
        probability: in [0.5, 1).
        degrees: of freedom, >= 1.
    """
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_distribution(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _t_distribution(t: float, degrees: int) -> float:
    """P(T <= t) for t >= 0: the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2 == 1
    term, total = (cosine, 0.0) if is_odd else (1.0, 0.0)
    for k in range(1 + is_odd, degrees, 2):
        total += term
        term *= k / (k + 1) * cosine**2
    inside = 2 / math.pi * (angle + sine * total) if is_odd else sine * total
    return 0.5 + inside / 2
