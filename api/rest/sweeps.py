"""Sweeps: searches over fields of a training spec."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from api.http.auth import Owner, Reader, Submitter
from api.http.dependencies import TheDatabase
from api.http.idempotency import TheSubmission
from api.rest import sweep_responses
from api.rest.sweep_bodies import SweepBody, create_sweep, new_sweep
from api.rest.sweep_responses import SweepPage, SweepResponse
from jobs import sweeps
from jobs.database import Database
from jobs.errors import FieldError, Invalid

router = APIRouter(prefix="/v1/sweeps", tags=["sweeps"])
_STATES = ("running", "succeeded", "failed", "cancelled")


@router.post(
    "",
    status_code=201,
    response_model=SweepResponse,
    responses={200: {"description": "A replay: the sweep of the first request.  Or the result of a dry run."}},
)
def submit(
    body: SweepBody,
    principal: Submitter,
    database: TheDatabase,
    response: Response,
    submission: TheSubmission,
    dry_run: bool = False,
) -> Any:
    """Start a sweep.  The server validates every trial's spec before it queues anything.

    The server creates the jobs as others end, with at most `max_parallel` unfinished trials.  With `Idempotency-Key`, a
    repeated request gets the first request's sweep, with status 200.  With `dry_run`, the server creates nothing and
    returns the trials, the rungs, and the numbers of jobs and epochs.
    """
    new, design = new_sweep(body, principal.key_id)
    if dry_run:
        with database.read() as session:
            return JSONResponse(sweeps.plan(session, design))
    sweep = create_sweep(submission, body, new, design)
    response.headers["Location"] = f"/v1/sweeps/{sweep.id}"
    with database.read() as session:
        return sweep_responses.response(sweep, sweeps.standings(session, sweep))


@router.get("")
def list_sweeps(
    principal: Reader,
    database: TheDatabase,
    status: Annotated[
        str | None,
        Query(description="One or more of running, succeeded, failed, cancelled, separated by commas.", max_length=200),
    ] = None,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the previous part.", max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
) -> SweepPage:
    """List sweeps, newest first."""
    statuses = [part for part in (status or "").split(",") if part]
    if unknown := [each for each in statuses if each not in _STATES]:
        raise Invalid([FieldError("status", f"{unknown[0]!r} is no status; expected {', '.join(_STATES)}")])
    with database.read() as session:
        page = sweeps.list_sweeps(session, status=statuses, cursor=cursor, limit=limit)
        counts = sweeps.trial_counts(session, [sweep.id for sweep in page.items])
    items = [sweep_responses.summary(sweep, counts[sweep.id]) for sweep in page.items]
    return SweepPage(items=items, next_cursor=page.next_cursor)


@router.get("/{sweep_id}")
def show(sweep_id: str, principal: Reader, database: TheDatabase) -> SweepResponse:
    """Return one sweep with its trials, their jobs and values."""
    return _shown(database, sweep_id)


@router.post("/{sweep_id}/cancel")
def cancel(sweep_id: str, principal: Owner, database: TheDatabase) -> SweepResponse:
    """Cancel a sweep: its waiting jobs end at once, running ones after they have saved a checkpoint."""
    database.write(lambda session: sweeps.cancel(session, sweep_id))
    return _shown(database, sweep_id)


def _shown(database: Database, sweep_id: str) -> SweepResponse:
    with database.read() as session:
        sweep = sweeps.get_sweep(session, sweep_id)
        return sweep_responses.response(sweep, sweeps.standings(session, sweep))
