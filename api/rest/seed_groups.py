"""Seed groups: jobs that differ in their seed only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from sqlalchemy.orm import Session

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.rest import responses
from api.rest.responses import JobSummary, Response
from jobs import queries, seed_groups
from jobs.models import Job
from jobs.seed_groups import Result
from wcl_core.config import result_title

router = APIRouter(prefix="/v1/groups", tags=["jobs"])


class SubmittedGroup(Response):
    """One job for each seed, in the order of the seeds; `warnings` are about names that other jobs have."""

    group_id: str
    items: list[JobSummary]
    warnings: list[str]


class GroupResult(Response):
    """One number over the seeds; `title` names it for people, and `interval` is the 95 % t-interval of the mean.

    `interval` is null for one seed, and where two seeds differ so much that it would be as wide as all shares.

    `epoch` is that of the measured checkpoints.  Where a planned evaluation chose each seed's best checkpoint,
    `selection` names the criterion.  `evaluation_seed` is the seed of the evaluation's own draws.
    """

    protocol: str
    protocol_version: int
    metric: str
    title: str
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


class GroupResponse(SubmittedGroup):
    """The jobs, and their evaluation results over the seeds."""

    results: list[GroupResult]


@router.get("/{group_id}")
def show(group_id: str, principal: Reader, database: TheDatabase) -> GroupResponse:
    """Return the jobs of a seed group, and each result with mean, deviation and 95 % t-interval over the seeds."""
    with database.read() as session:
        jobs = seed_groups.members(session, group_id)
        results = [_result(result) for result in seed_groups.results(session, jobs)]
        return GroupResponse(group_id=group_id, items=_items(session, jobs), warnings=[], results=results)


def _result(result: Result) -> GroupResult:
    return GroupResult.of(result, title=result_title(result.protocol, result.metric))


def submitted(session: Session, jobs: Sequence[Job], warnings: list[str]) -> SubmittedGroup:
    """Return a group as `POST /v1/jobs` does."""
    return SubmittedGroup(group_id=jobs[0].group_id or "", items=_items(session, jobs), warnings=warnings)


def _items(session: Session, jobs: Sequence[Job]) -> list[JobSummary]:
    tags = queries.tags(session, [job.id for job in jobs])
    return [responses.job_summary(job, tags[job.id]) for job in jobs]
