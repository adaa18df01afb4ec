"""Usage: devices by key or project and month, stored files by key, project and job."""

from __future__ import annotations

import logging
from functools import partial
from typing import Annotated, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi import Response as HttpResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.http.auth import Owner, Reader
from api.http.dependencies import TheDatabase, TheSettings, TheStorage
from api.rest import exports
from api.rest.csv_files import described, file, inert
from api.rest.responses import Response
from jobs import access, checkpoints, queries, usage
from jobs.access import Principal
from jobs.database import Database
from jobs.errors import FieldError, Forbidden, Invalid, existing
from jobs.models import Checkpoint, Job

router = APIRouter(prefix="/v1", tags=["operations"])
log = logging.getLogger(__name__)
_AT_ONCE: Final = 100  # jobs of one transaction

_MONTH: Final = r"^20[0-9]{2}-(0[1-9]|1[0-2])$"
Month = Annotated[str | None, Query(pattern=_MONTH, description="Only this month, such as 2026-11.")]
First = Annotated[str | None, Query(alias="from", pattern=_MONTH, description="The first month, such as 2026-09.")]
Last = Annotated[str | None, Query(alias="to", pattern=_MONTH, description="The last month.")]
By = Annotated[
    Literal["key", "project", "key,project"],
    Query(description="What a row is about: a key, a project, or a key in a project."),
]
_HOUR_MS: Final = 3_600_000
_OF: Final[dict[str, tuple[str, ...]]] = {"key": ("owner", "owner_id"), "project": ("project", "project_id")}
_NUMBERS: Final = ("gpu_hours", "cpu_hours", "jobs", "attempts")
_CSV: Final = described("A row for each month and key or project, the newest month first.")


class UsageResponse(Response):
    """What the jobs of a key, or of a project, used in a month (UTC), those that run or are deleted included.

    With `by=project`, `owner` and `owner_id` are empty; with `by=key`, `project` and `project_id` are null.  A GPU hour
    is one hour in which an attempt holds one GPU, a CPU hour one hour in which an attempt without GPUs runs, whatever
    the number of its cores.  `jobs` began in that month.
    """

    month: str
    owner_id: str
    owner: str
    project_id: str | None
    project: str | None
    gpu_hours: float
    cpu_hours: float
    jobs: int
    attempts: int


class UsageList(Response):
    """The newest month first, in it the largest use first."""

    items: list[UsageResponse]


class StoredResponse(Response):
    """The registered files of the jobs of a key, in bytes; files of deleted jobs do not count."""

    owner_id: str
    owner: str
    num_jobs: int
    num_files: int
    size: int


class StoredInProjectResponse(Response):
    """The registered files of the jobs of a project, in bytes; files of deleted jobs do not count."""

    project_id: str
    project: str
    num_jobs: int
    num_files: int
    size: int


class StoredJobResponse(Response):
    """The registered files of a job; `removable` are the bytes of checkpoints that can be deleted.

    These are all but the newest and the pinned ones, and those that an unfinished job or sweep needs.
    """

    job_id: str
    name: str
    status: str
    owner: str
    num_files: int
    size: int
    removable: int


class StorageResponse(Response):
    """The stored files of each key, of each project and of the largest jobs, the largest first."""

    size: int
    owners: list[StoredResponse]
    projects: list[StoredInProjectResponse]
    jobs: list[StoredJobResponse]


@router.get("/usage")
def show_usage(
    principal: Reader,
    database: TheDatabase,
    month: Month = None,
    by: By = "key",
    first: First = None,
    last: Last = None,
) -> UsageList:
    """Return the use of devices of each key, or of each project, in each month."""
    return UsageList(items=_usage(database, first or month, last or month, by))


@router.get("/usage.csv", response_class=HttpResponse, responses=_CSV)
def usage_table(
    principal: Reader,
    database: TheDatabase,
    month: Month = None,
    by: By = "key",
    first: First = None,
    last: Last = None,
) -> HttpResponse:
    """Return the use of devices of each key, or of each project, in each month as CSV."""
    names = [name for each in by.split(",") for name in _OF[each]]
    lines = [
        (row.month, *(inert(getattr(row, name) or "") for name in names), *(getattr(row, each) for each in _NUMBERS))
        for row in _usage(database, first or month, last or month, by)
    ]
    return file("usage.csv", [("month", *names, *_NUMBERS), *lines])


def _usage(database: Database, first: str | None, last: str | None, by: str) -> list[UsageResponse]:
    if first and last and first > last:
        raise Invalid([FieldError("/from", f"{first} is after {last}")])
    with database.read() as session:
        return [usage_response(row) for row in usage.monthly(session, first, last, by=by.split(","))]


@router.get("/storage")
def show_storage(
    principal: Reader,
    database: TheDatabase,
    by: Annotated[str | None, Query(description="Only jobs of the key with this name or id.", max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=1_000, description="Number of jobs.")] = 50,
) -> StorageResponse:
    """Return what uses the storage: registered files by key and by project, and the jobs with the most bytes."""
    with database.read() as session:
        owners, in_projects = usage.stored(session), usage.stored_in_projects(session)
        owner_id = None
        if by:
            queries.check_owner_filter(session, by, "by")
            owner_id = existing(queries.key_of(session, by), "key", by)
        jobs = usage.largest(session, limit, owner_id)
    return StorageResponse(
        size=sum(row.size for row in owners),
        owners=[StoredResponse.of(row) for row in owners if owner_id in (None, row.owner_id)],
        projects=[StoredInProjectResponse.of(row) for row in in_projects],
        jobs=[StoredJobResponse.of(row) for row in jobs],
    )


class CleanBody(BaseModel):
    """Whose removable checkpoints to remove; without both, those of all jobs that the key may change."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"by": "anna", "dry_run": True}]})

    jobs: Annotated[list[UUID], Field(max_length=1_000)] = []
    by: Annotated[str, Field(max_length=200, description="Name or id of a key: only its jobs.")] = ""
    dry_run: StrictBool = False


class CleanResponse(Response):
    """The checkpoints that were removed, or would be; a worker removes the `num_left` files of them later."""

    num_jobs: int
    num_checkpoints: int
    size: int
    num_left: int


@router.post("/storage/clean")
def clean_storage(
    body: CleanBody, principal: Owner, database: TheDatabase, settings: TheSettings, storage: TheStorage
) -> CleanResponse:
    """Remove the removable checkpoints of jobs: neither pinned, nor a job's newest, nor needed.  There is no undo."""
    with database.read() as session:
        queries.check_owner_filter(session, body.by, "by")
        owner_id = queries.key_of(session, body.by) if body.by else None
        ids = _cleanable(session, principal, [str(job_id) for job_id in body.jobs], owner_id)
    jobs, count, size, left = set[str](), 0, 0, 0
    for start in range(0, len(ids), _AT_ONCE):
        batch = ids[start : start + _AT_ONCE]
        if body.dry_run:
            with database.read() as session:
                rows = checkpoints.spare(session, batch)
        else:
            rows = database.write(partial(checkpoints.remove_spare, job_ids=batch))
        for row in rows:
            jobs.add(row.job_id)
            count, size = count + 1, size + row.size
            if not body.dry_run:
                try:
                    storage.delete(row.storage_key)
                except OSError as error:  # it belongs to no row, so a worker removes it at its next start
                    log.warning("the file of checkpoint %s cannot be removed: %s", row.id, error)
                    left += 1
    if count and not body.dry_run:
        exports.sweep(database, settings.exports_dir)
    return CleanResponse(num_jobs=len(jobs), num_checkpoints=count, size=size, num_left=left)


def _cleanable(session: Session, principal: Principal, job_ids: list[str], owner_id: str | None) -> list[str]:
    """Return the ids of the jobs with checkpoints that the key may change; refuse those that it names and may not."""
    for job_id in job_ids:
        access.check_owner(session, queries.get_job(session, job_id).created_by, f"job {job_id}")
    chosen = select(Checkpoint.job_id).distinct().join(Job, Job.id == Checkpoint.job_id)
    chosen = chosen.where(Checkpoint.deleted_at.is_(None))
    if job_ids:
        chosen = chosen.where(Job.id.in_(job_ids))
    if owner_id is not None:
        if not principal.may_change(owner_id):
            raise Forbidden("only that key or one with `admin` may remove its checkpoints")
        chosen = chosen.where(Job.created_by == owner_id)
    elif not job_ids and "admin" not in principal.scopes:
        chosen = chosen.where(Job.created_by == principal.key_id)
    return sorted(session.execute(chosen).scalars())


def usage_response(row: usage.Usage) -> UsageResponse:
    hours = {"gpu_hours": round(row.gpu_ms / _HOUR_MS, 4), "cpu_hours": round(row.cpu_ms / _HOUR_MS, 4)}
    return UsageResponse.of(row, **hours)
