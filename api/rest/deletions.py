"""Deleted jobs: delete one or many, list, restore."""

from __future__ import annotations

import logging
from functools import partial
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from api.http.auth import Admin, Owner
from api.http.dependencies import TheDatabase, TheSettings, TheStorage
from api.rest import responses
from api.rest.responses import JobResponse, Response, Time
from jobs import access, deletions, purge, queries
from jobs.database import Database
from jobs.deletions import AT_ONCE, Extent
from jobs.errors import Conflict
from jobs.keys import Principal
from jobs.models import Job
from jobs.queries import Filters

router = APIRouter(prefix="/v1", tags=["jobs"])

MOST = 1_000  # jobs of one request
log = logging.getLogger(__name__)


class JobFilter(BaseModel):
    """The filters of the list of jobs; at least one of them."""

    model_config = ConfigDict(extra="forbid")

    status: Annotated[list[str], Field(max_length=10)] = []
    kind: Literal["", "pretrain", "evaluate"] = ""
    tag: Annotated[str, Field(max_length=64)] = ""
    q: Annotated[str, Field(max_length=200)] = ""
    archived: Literal["", "only", "all"] = ""
    starred: bool = False
    by: Annotated[str, Field(max_length=200, description="Name or id of the key that the jobs are of.")] = ""

    @property
    def filters(self) -> Filters:
        return Filters(tuple(self.status), self.kind, self.tag, self.q, self.archived, self.starred, self.by)

    @model_validator(mode="after")
    def _has_a_field(self) -> JobFilter:
        if not self.filters.are_set:
            raise ValueError(
                "expected at least one of status, kind, tag, q, archived, starred, by; for all jobs, list their ids"
            )
        return self


class SelectedJobs(BaseModel):
    """Jobs by their ids, or the newest ones that match a filter."""

    model_config = ConfigDict(extra="forbid")

    jobs: Annotated[list[UUID], Field(max_length=MOST)] = []
    filter: JobFilter | None = None
    dry_run: StrictBool = False

    @model_validator(mode="after")
    def _has_one(self) -> SelectedJobs:
        if bool(self.jobs) == (self.filter is not None):
            raise ValueError("expected either jobs, a list of ids, or filter")
        return self


class DeleteBody(SelectedJobs):
    """Jobs to delete: by their ids, or the newest ones that match a filter."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"filter": {"status": ["failed"], "tag": "trial"}, "dry_run": True}]}
    )


class RelatedResponse(Response):
    """A job or a sweep."""

    id: str
    name: str


class RefusalResponse(Response):
    """A job that is not deleted, and why."""

    job_id: str
    name: str
    reason: str


class ExtentResponse(Response):
    """What was deleted, or would be: counts include the evaluations below the jobs; `size` is in bytes.

    `refused` are requested jobs that stay.  `restorable_days` are those within which an administrator can restore.
    """

    jobs: list[RelatedResponse]
    num_evaluation_jobs: int
    num_waiting: int
    num_checkpoints: int
    num_pinned: int
    size: int
    num_results: int
    continued_by: list[RelatedResponse]
    sweeps: list[RelatedResponse]
    num_seed_groups: int
    refused: list[RefusalResponse]
    restorable_days: float


@router.delete("/jobs/{job_id}")
def delete(
    job_id: str, principal: Owner, database: TheDatabase, settings: TheSettings, dry_run: bool = False
) -> ExtentResponse:
    """Delete a job with its checkpoints, artifacts, metrics, logs and evaluations.

    A waiting job is cancelled first.  The response is 409 while the job runs, or while an unfinished job needs it.  The
    job is absent at once; an administrator can restore it for `restorable_days`, then its files and rows are removed.
    With `dry_run`, nothing is deleted, and the response is what would be.
    """
    with database.read() as session:
        job = queries.get_job(session, job_id)
        if not dry_run:
            access.check_owner(session, job.created_by, f"job {job_id}")
    result = delete_jobs(database, [job_id], principal, dry_run)
    if result.refused and not dry_run:
        raise Conflict(f"job {job_id} is not deleted: {result.refused[0].reason}")
    return ExtentResponse.of(result, restorable_days=settings.restore_days)


@router.post("/jobs/delete")
def delete_many(body: DeleteBody, principal: Owner, database: TheDatabase, settings: TheSettings) -> ExtentResponse:
    """Delete jobs, newest first, at most 1,000 of a filter; those that run or are needed stay, and are in `refused`."""
    ids = [str(job_id) for job_id in body.jobs] if body.filter is None else matching(database, body.filter.filters)
    result = delete_jobs(database, ids, principal, body.dry_run)
    return ExtentResponse.of(result, restorable_days=settings.restore_days)


def matching(database: Database, filters: Filters) -> list[str]:
    """Return the ids of the newest jobs that match a filter."""
    with database.read() as session:
        newest = queries.matching(session, select(Job.id), filters).order_by(Job.id.desc()).limit(MOST)
        return list(session.execute(newest).scalars())


def delete_jobs(database: Database, job_ids: list[str], by: Principal, dry_run: bool) -> Extent:
    """Delete jobs, newest first, some at a time; or return what this would delete."""
    total = Extent()
    ids = sorted(set(job_ids), reverse=True)
    for start in range(0, len(ids), AT_ONCE):
        batch = ids[start : start + AT_ONCE]
        if dry_run:
            with database.read() as session:
                total.add(deletions.extent(session, batch, {each.id for each in total.jobs}))
        else:
            total.add(database.write(partial(deletions.delete, job_ids=batch, by=by)))
    return total


class DeletionResponse(Response):
    """A deleted job; `root_id` is the job that the user deleted, `restored_at` and `purged_at` what became of it."""

    job_id: str
    job_name: str
    job_kind: str
    root_id: str
    num_checkpoints: int
    size: int
    deleted_by: str
    deleted_by_name: str
    deleted_at: Time
    restored_by_name: str | None
    restored_at: Time | None
    purge_began_at: Time | None
    purged_at: Time | None


class Deletions(Response):
    """The newest 1,000, newest first."""

    items: list[DeletionResponse]


@router.get("/deletions")
def list_deletions(principal: Admin, database: TheDatabase) -> Deletions:
    """List deleted jobs: who deleted each of them, when, and whether it was restored or removed."""
    with database.read() as session:
        return Deletions(items=[DeletionResponse.of(row) for row in deletions.records(session)])


class PurgeBody(BaseModel):
    """Deleted jobs to remove at once: by their ids, or all those of a key."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"by": "anna", "dry_run": True}]})

    jobs: Annotated[list[UUID], Field(max_length=MOST)] = []
    by: Annotated[str, Field(max_length=200, description="Name or id of the key that submitted the jobs.")] = ""
    dry_run: StrictBool = False

    @model_validator(mode="after")
    def _has_one(self) -> PurgeBody:
        if bool(self.jobs) == bool(self.by):
            raise ValueError("expected either jobs, a list of ids, or by, a key")
        return self


class PurgeResponse(Response):
    """The deleted jobs that are removed, or would be; with their evaluations they have `size` bytes.

    `num_left` of them are not removed yet, as after an error of the storage or during a backup: a server repeats it
    within ten minutes.
    """

    jobs: list[RelatedResponse]
    size: int
    num_left: int


@router.post("/deletions/purge")
def purge_now(
    body: PurgeBody, request: Request, principal: Admin, database: TheDatabase, storage: TheStorage
) -> PurgeResponse:
    """Remove files and rows of deleted jobs at once, before `restorable_days` are over.  It cannot be undone."""
    ids = [str(job_id) for job_id in body.jobs]
    with database.read() as session:
        queries.check_owner_filter(session, body.by, "by")
        owner_id = None if ids else queries.key_of(session, body.by)
        rows = purge.requested(session, ids, owner_id)
    left = 0
    if not body.dry_run:
        chosen = database.write(lambda session: purge.request(session, ids, owner_id, principal))
        for deletion_id, job_id in chosen:
            try:
                purge.purge(request.app.state.database, storage, deletion_id, job_id)
            except (OSError, DBAPIError) as error:
                log.warning("the deleted job %s is not removed yet: %s", job_id, error)
                left += 1
    roots = [RelatedResponse(id=row.job_id, name=row.job_name) for row in rows if row.job_id == row.root_id]
    return PurgeResponse(jobs=roots, size=sum(row.size for row in rows), num_left=left)


@router.post("/jobs/{job_id}/restore")
def restore(job_id: str, principal: Admin, database: TheDatabase) -> JobResponse:
    """Restore a deleted job, with the evaluations that were deleted with it, until its removal begins."""
    database.write(lambda session: deletions.restore(session, job_id, principal))
    with database.read() as session:
        return _response(session, job_id)


def _response(session: Session, job_id: str) -> JobResponse:
    return responses.job(session, queries.get_job(session, job_id), queries.tags(session, [job_id])[job_id])
