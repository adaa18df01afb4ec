"""The list of sweeps, newest first, all or those in one state."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.web.render import page
from jobs import sweeps
from jobs.database import database_time
from jobs.models import Sweep
from jobs.queries import Page
from jobs.status import Status

router = APIRouter(include_in_schema=False)

PAGE_SIZE = 50
STATUSES = (Status.RUNNING, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


@dataclass(frozen=True)
class SweepList:
    """One page of the list; `counts` are the numbers of trials by sweep, `status_shown` is empty for all states.

    `has_any` is whether there are sweeps in any state.
    """

    list: Page[Sweep]
    counts: dict[str, int]
    status_shown: str
    is_first: bool
    has_any: bool
    now: int


def sweep_list(session: Session, status: str, cursor: str) -> SweepList:
    """Return the newest sweeps in a state, or in any if `status` is empty.

    Raises:
        Invalid: the cursor is not one of this service.
    """
    states = [status] if status else []
    part = sweeps.list_sweeps(session, status=states, cursor=cursor or None, limit=PAGE_SIZE)
    counts = sweeps.trial_counts(session, [sweep.id for sweep in part.items])
    has_any = bool(part.items or ((status or cursor) and sweeps.list_sweeps(session, limit=1).items))
    return SweepList(part, counts, status, not cursor, has_any, database_time(session))


@router.get("/sweeps")
def sweeps_page(
    request: Request, reader: Reader, database: TheDatabase, status: str = "", cursor: str = ""
) -> Response:
    """Return the page of all sweeps, or of those in one state."""
    with database.read() as session:
        view = sweep_list(session, status if status in STATUSES else "", cursor)
    may_submit = "submit" in reader.scopes
    return page(request, "sweeps.html", **vars(view), statuses=STATUSES, may_submit=may_submit)
