"""Seed groups: jobs that differ in their seed only, and the results of their evaluations over the seeds."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from jobs.checkpoints import BEST_METRIC
from jobs.errors import NotFound
from jobs.models import Checkpoint, Evaluation, Job, JobEvaluation
from jobs.planned_evaluations import BEST_ORIGIN
from wcl_core.intervals import summary_of_shares, wilson
from wcl_core.text import counted

# Measures that are shares of the test images; others are means of shares, or over draws.
SHARES = ("top1", "recall_at_1", "recall_at_5")
_NOT_TRAINING = ("seed", "evaluations")
_SEED_NAME = re.compile(r", seed \d+(-\d+)?$")  # with the number of a copy
SELECTED_ON_TEST = f"best {BEST_METRIC}, selected on test"


@dataclass(frozen=True)
class Result:
    """One measured number over the seeds.

    Attributes:
        epoch: of the measured checkpoints; None for other features, or if it differs between the seeds.
        selection: how each seed's checkpoint was selected, if not by its epoch.
        evaluation_seed: of the evaluation's own draws; None if it is the job's seed.
        seeds, values: of the jobs that have a value, by seed.
        deviation: of the sample; None for a single value.
        interval: 95 % t-interval of the mean; None for a single value, and where two values differ too much for one.
        num_images: of each value, if it is a share of the test images; None otherwise.
    evaluations: that measured the values.
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
    num_images: int | None = None
    evaluations: list[Evaluation] = field(default_factory=list, repr=False)

    @property
    def shown_interval(self) -> tuple[float, float] | None:
        """The interval over the seeds; of a single one, that of its share of the images."""
        return share_interval(self.evaluations[0]) if len(self.values) == 1 and self.evaluations else self.interval

    @property
    def interval_over(self) -> str:
        """What the shown interval is over: 3 seeds, or the images of a single one."""
        if len(self.values) == 1 and self.num_images:
            return counted(self.num_images, "image")
        return counted(len(self.values), "seed")


def share_interval(evaluation: Evaluation) -> tuple[float, float] | None:
    """Return the 95 % interval of a measured share; None for other measures, and over several draws."""
    value, count = evaluation.value, evaluation.n
    if evaluation.metric not in SHARES or evaluation.stderr is not None or value is None or not count:
        return None
    return wilson(value, count)


def seedless_name(name: str) -> str:
    """Return the name that the jobs of a group share: without the seed at its end."""
    return _SEED_NAME.sub("", name)


def training_settings(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a training spec that decide the result for each seed."""
    return {name: value for name, value in spec.items() if name not in _NOT_TRAINING}


def members(session: Session, group_id: str) -> list[Job]:
    """Return the jobs of a seed group, oldest first.

    Raises:
        NotFound: there is no such group.
    """
    jobs = list(session.execute(select(Job).where(Job.group_id == group_id).order_by(Job.id)).scalars())
    if not jobs:
        raise NotFound(f"there is no group {group_id!r}")
    return jobs


def results(session: Session, jobs: Sequence[Job]) -> list[Result]:
    """Return every measured number over the seeds of a group.

    Of two jobs with one seed, as after a retry, the newer one counts.  Numbers belong together when protocol, version,
    parameters, metric, dataset and the epoch of the checkpoints agree.  For planned evaluations of the best
    checkpoint, the selection replaces the epoch.

    Args:
        jobs: oldest first.
    """
    return results_of(session, [jobs])[0]


def results_of(session: Session, groups: Sequence[Sequence[Job]], *only: ColumnElement[bool]) -> list[list[Result]]:
    """Return the results of each group; the number of statements does not depend on the number of jobs.

    Args:
        session: a reading transaction.
        groups: each oldest first.
        only: conditions for evaluations; by default all count.
    """
    newest = [{int(job.spec["seed"]): job for job in jobs} for jobs in groups]  # a newer job replaces an older one
    measurements = _measurements(session, [job for by_seed in newest for job in by_seed.values()], *only)
    return [_results(by_seed, measurements) for by_seed in newest]


@dataclass(frozen=True)
class _Measurement:
    """An evaluation of a job, with the epoch or the selection of the checkpoint that was measured."""

    evaluation: Evaluation
    epoch: int | None = None
    selection: str | None = None


def _results(by_seed: dict[int, Job], measurements: dict[str, list[_Measurement]]) -> list[Result]:
    table: dict[tuple[Any, ...], dict[int, Evaluation]] = defaultdict(dict)
    for seed, job in sorted(by_seed.items()):
        for entry in measurements[job.id]:
            evaluation = entry.evaluation
            if evaluation.value is None:
                continue
            own_seed = None if job.kind == "evaluate" else evaluation.seed
            names = (evaluation.protocol, evaluation.protocol_version, evaluation.metric, evaluation.params_digest)
            key = (*names, evaluation.dataset_digest, entry.epoch, entry.selection, own_seed)
            table[key][seed] = evaluation
    return [_result(key, measured) for key, measured in table.items()]


def _measurements(session: Session, jobs: Sequence[Job], *only: ColumnElement[bool]) -> dict[str, list[_Measurement]]:
    """Return the measurements by job: an evaluation job's own ones, and those of a training job's checkpoints."""
    by_job: dict[str, list[_Measurement]] = {job.id: [] for job in jobs}
    measuring_ids = [job.id for job in jobs if job.kind == "evaluate"]
    own = (
        select(JobEvaluation.job_id, Evaluation)
        .join(Evaluation, Evaluation.id == JobEvaluation.evaluation_id)
        .where(JobEvaluation.job_id.in_(measuring_ids), *only)
        .order_by(Evaluation.id)
    )
    for job_id, evaluation in session.execute(own) if measuring_ids else ():
        by_job[job_id].append(_Measurement(evaluation))
    trained = [job.id for job in jobs if job.kind != "evaluate"]
    ancestors = _measuring_jobs(session, trained, *only)
    of_checkpoints = (
        select(Evaluation, Checkpoint.epoch, Checkpoint.job_id, JobEvaluation.job_id)
        .join(Checkpoint, Checkpoint.sha256 == Evaluation.features_digest)
        .join(JobEvaluation, JobEvaluation.evaluation_id == Evaluation.id)
        .where(Checkpoint.job_id.in_(trained), *only)
        .order_by(Evaluation.id)
    )
    for evaluation, epoch, job_id, measuring_id in session.execute(of_checkpoints):
        is_best = _measures_the_best(ancestors, measuring_id, job_id)
        entry = _Measurement(evaluation, selection=SELECTED_ON_TEST) if is_best else _Measurement(evaluation, epoch)
        by_job[job_id].append(entry)
    return by_job


def _measuring_jobs(session: Session, trained_ids: Sequence[str], *only: ColumnElement[bool]) -> dict[str, Any]:
    """Return the jobs that have measured checkpoints of training jobs, with all their ancestors, by id."""
    measuring = (
        select(JobEvaluation.job_id.label("id"))
        .join(Evaluation, Evaluation.id == JobEvaluation.evaluation_id)
        .join(Checkpoint, Checkpoint.sha256 == Evaluation.features_digest)
        .where(Checkpoint.job_id.in_(trained_ids), *only)
        .cte(recursive=True)
    )
    is_copy = Job.kind == "evaluate", Job.parent_id.is_not(None)
    parents = select(Job.parent_id).join(measuring, Job.id == measuring.c.id).where(*is_copy)
    ancestors = measuring.union(parents)
    features = Job.spec["features"].as_string().label("features")  # parsed for the few that are compared
    statement = select(Job.id, Job.kind, Job.parent_id, Job.origin, features)
    return {row.id: row for row in session.execute(statement.where(Job.id.in_(select(ancestors.c.id))))}


def _measures_the_best(jobs: dict[str, Any], measuring_id: str, trained_id: str) -> bool:
    """Return whether a job is a planned evaluation of the best checkpoint, or a copy of one with its checkpoint."""
    measuring = jobs[measuring_id]
    planned = measuring
    while planned is not None and planned.kind == "evaluate" and planned.parent_id != trained_id:
        planned = jobs.get(planned.parent_id) if planned.parent_id else None
    return (
        planned is not None
        and BEST_ORIGIN.fullmatch(planned.origin or "") is not None
        and bool(json.loads(planned.features) == json.loads(measuring.features))
    )


def _result(key: tuple[Any, ...], by_seed: dict[int, Evaluation]) -> Result:
    protocol, version, metric, _, digest, epoch, selection, own_seed = key
    seeds, evaluations = list(by_seed), list(by_seed.values())
    values, newest = [each.value for each in evaluations if each.value is not None], evaluations[-1]
    facts = (protocol, version, metric, newest.params, digest, epoch, selection, own_seed)
    num_images = newest.n if metric in SHARES and newest.stderr is None else None
    return Result(*facts, seeds, values, *summary_of_shares(values), num_images, evaluations)
