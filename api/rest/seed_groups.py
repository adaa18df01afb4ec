"""Groups: jobs that differ in their seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from sqlalchemy.orm import Session
from typing_extensions import TypedDict

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.rest import rendering
from api.rest.responses import JobSummary
from jobs import queries, seed_groups
from jobs.models import Job
from jobs.seed_groups import Result

router = APIRouter(prefix="/v1/groups", tags=["jobs"])


class SubmittedGroup(TypedDict):
    """One job a seed, in the order of the seeds."""

    group_id: str
    items: list[JobSummary]


class GroupResult(TypedDict):
    """One number over the seeds; `interval` is the 95 % t-interval of the mean.

    `epoch` is that of the measured checkpoints; where a plan chose each seed's best one, `selection` says by what.
    `evaluation_seed` is that of the evaluation's own draws.
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
    interval: list[float] | None


class GroupAnswer(SubmittedGroup):
    """The jobs, and what was measured on them over the seeds."""

    results: list[GroupResult]


@router.get("/{group_id}")
def show(group_id: str, principal: Reader, database: TheDatabase) -> GroupAnswer:
    """The jobs of a group; each measured number with mean, deviation and 95 % t-interval over the seeds."""
    with database.read() as session:
        jobs = seed_groups.members(session, group_id)
        found = seed_groups.results(session, jobs)
        return {**submitted(session, jobs), "results": [_result(result) for result in found]}


def submitted(session: Session, jobs: Sequence[Job]) -> SubmittedGroup:
    """A group as POST answers it."""
    tags = queries.tags(session, [job.id for job in jobs])
    return {"group_id": jobs[0].group_id or "", "items": [rendering.job_summary(job, tags[job.id]) for job in jobs]}


def _result(result: Result) -> GroupResult:
    return {
        "protocol": result.protocol,
        "protocol_version": result.protocol_version,
        "metric": result.metric,
        "params": result.params,
        "dataset_digest": result.dataset_digest,
        "epoch": result.epoch,
        "selection": result.selection,
        "evaluation_seed": result.evaluation_seed,
        "seeds": result.seeds,
        "values": result.values,
        "mean": result.mean,
        "deviation": result.deviation,
        "interval": None if result.interval is None else list(result.interval),
    }
