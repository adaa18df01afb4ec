"""Requests about many jobs at once: cancel, pause, resume."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from pydantic import ConfigDict
from sqlalchemy.orm import Session

from api.http.auth import Owner
from api.http.dependencies import TheDatabase
from api.http.idempotency import Submission, TheBulkRequest
from api.rest.deletions import RefusalResponse, SelectedJobs
from api.rest.responses import Response
from jobs import activity, bulk, queries
from jobs.bulk import AT_ONCE, MOST, Changed, Verb
from jobs.database import Database
from jobs.models import Activity

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


class BulkBody(SelectedJobs):
    """Jobs to cancel, pause or resume: by their ids, or the newest ones that match a filter."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"filter": {"by": "anna", "status": ["queued"]}, "dry_run": True}]}
    )


class ChangedJob(Response):
    """A job that changed, with its status after that; a running one carries the request out soon."""

    id: str
    name: str
    status: str


class BulkResponse(Response):
    """What changed, or would; `has_more` says that a filter matches more jobs than one request changes.

    `num_foreign` is the number of jobs of other keys that a filter matches, too: they stay, since only their owner or
    an administrator may change them.
    """

    count: int
    jobs: list[ChangedJob]
    refused: list[RefusalResponse]
    has_more: bool
    num_foreign: int


@router.post("/cancel")
def cancel_many(body: BulkBody, principal: Owner, database: TheDatabase, request: TheBulkRequest) -> BulkResponse:
    """Cancel jobs, at most 1,000 of a filter: those that wait or run, and that this key may change.

    A repeated request with the same `Idempotency-Key` completes the first one, and leaves out jobs submitted since.
    """
    return change_many(database, "cancel", body, request)


@router.post("/pause")
def pause_many(body: BulkBody, principal: Owner, database: TheDatabase, request: TheBulkRequest) -> BulkResponse:
    """Pause jobs as `/v1/jobs/cancel` cancels them: those that are queued or run."""
    return change_many(database, "pause", body, request)


@router.post("/resume")
def resume_many(body: BulkBody, principal: Owner, database: TheDatabase, request: TheBulkRequest) -> BulkResponse:
    """Resume jobs as `/v1/jobs/cancel` cancels them: those that are paused."""
    return change_many(database, "resume", body, request)


def change_many(database: Database, verb: Verb, body: BulkBody, request: Submission) -> BulkResponse:
    """Change the jobs of a body, some in a transaction; or return what this would change."""
    until, num_foreign = None, 0
    if body.filter is not None:  # before the entry: a refused request leaves none
        with database.read() as session:
            queries.check_filters(session, body.filter.filters, "/filter/")
    if not body.dry_run:

        def note(session: Session) -> Activity:
            facts = body.model_dump(mode="json", exclude_unset=True)
            return activity.noted(session, f"jobs.{verb}", "", f"{len(body.jobs)} jobs" if body.jobs else "", **facts)

        until = request.create((verb, body.model_dump(mode="json")), Activity, note, count=0).at
    with database.read() as session:
        if body.filter is None:
            ids = list(dict.fromkeys(str(job_id) for job_id in body.jobs))
        else:
            ids = bulk.matching(session, verb, body.filter.filters, until)
            num_foreign = bulk.num_foreign(session, verb, body.filter.filters, until)
    result, has_more = Changed(), len(ids) > MOST
    ids = ids[:MOST]
    for start in range(0, len(ids), AT_ONCE):
        batch = ids[start : start + AT_ONCE]
        if body.dry_run:
            with database.read() as session:
                result.add(bulk.listed(session, verb, batch))
        else:
            result.add(database.write(partial(bulk.change, verb=verb, job_ids=batch)))
    return BulkResponse(
        count=len(result.jobs),
        jobs=[ChangedJob.of(job) for job in result.jobs],
        refused=[RefusalResponse.of(each) for each in result.refused],
        has_more=has_more,
        num_foreign=num_foreign,
    )
