"""Sweeps: searches over fields of a training spec."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from api.http.auth import Reader, Submitter
from api.http.dependencies import TheDatabase
from api.http.idempotency import TheSubmission
from api.rest import sweep_responses
from api.rest.sweep_bodies import SweepBody, create_sweep, new_sweep
from api.rest.sweep_responses import SweepPage, SweepResponse
from jobs import sweeps
from jobs.database import Database

router = APIRouter(prefix="/v1/sweeps", tags=["sweeps"])


@router.post(
    "",
    status_code=201,
    response_model=SweepResponse,
    responses={200: {"description": "The first sweep, at a replay; a plan, at a dry run."}},
)
def submit(
    body: SweepBody,
    principal: Submitter,
    database: TheDatabase,
    response: Response,
    submission: TheSubmission,
    dry_run: bool = False,
) -> Any:
    """Begin a sweep.  Every trial's spec is checked before anything is queued.

    Its jobs are made as others end, at most `max_parallel` trials at a time.  With `Idempotency-Key` a repeated request
    answers 200 with the first sweep.  With `dry_run` nothing is made; the answer says which trials there would be, on
    which rungs, how many jobs, and how many epochs these have together.
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
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.", max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
) -> SweepPage:
    """Sweeps, newest first."""
    statuses = [part for part in (status or "").split(",") if part]
    with database.read() as session:
        page = sweeps.list_sweeps(session, status=statuses, cursor=cursor, limit=limit)
        counts = sweeps.trial_counts(session, [sweep.id for sweep in page.items])
    items = [sweep_responses.summary(sweep, counts[sweep.id]) for sweep in page.items]
    return SweepPage(items=items, next_cursor=page.next_cursor)


@router.get("/{sweep_id}")
def show(sweep_id: str, principal: Reader, database: TheDatabase) -> SweepResponse:
    """One sweep with its trials, their jobs and values."""
    return _shown(database, sweep_id)


@router.post("/{sweep_id}/cancel")
def cancel(sweep_id: str, principal: Submitter, database: TheDatabase) -> SweepResponse:
    """End a sweep: its waiting jobs at once, running ones after they have saved a checkpoint."""
    database.write(lambda session: sweeps.cancel(session, sweep_id))
    return _shown(database, sweep_id)


def _shown(database: Database, sweep_id: str) -> SweepResponse:
    with database.read() as session:
        sweep = sweeps.get_sweep(session, sweep_id)
        return sweep_responses.response(sweep, sweeps.standings(session, sweep))
