"""The page of the activity log: who did what, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from api.http.auth import ServiceAdmin
from api.http.dependencies import TheDatabase
from api.web.render import page
from jobs import activity
from jobs.database import database_time
from jobs.errors import FieldError, Invalid
from jobs.models import Activity

router = APIRouter(include_in_schema=False)

_MOST = 100  # entries of a page
_TITLES: Final = {
    "jobs": "many jobs at once",
    "weights": "imported weights",
    "share": "shared links",
    "view": "saved views",
    "session": "sign-ins",
}
_KINDS: Final = {kind: _TITLES.get(kind, f"{kind}s") for kind in activity.ACTIONS}
_Text = Annotated[str, Query(max_length=200)]


@router.get("/activity")
def activity_page(
    request: Request,
    admin: ServiceAdmin,
    database: TheDatabase,
    actor: _Text = "",
    action: _Text = "",
    target: _Text = "",
    cursor: Annotated[str, Query(max_length=36)] = "",
) -> Response:
    """Return the entries of the log, newest first."""
    actor, action, target = actor.strip(), action.strip(), target.strip()
    filters = {"actor": actor, "action": action, "target": target}
    rows: Sequence[Activity] = ()
    problems: Sequence[FieldError] = ()
    with database.read() as session:
        now = database_time(session)
        try:
            rows = activity.entries(
                session, actor=actor, action=action, target=target, before=cursor or None, limit=_MOST + 1
            )
        except Invalid as error:
            problems = error.errors
    older = rows[_MOST - 1].id if len(rows) > _MOST else None
    lines = [(row, _address(row), activity.title(row.action), activity.facts_of(row.details)) for row in rows[:_MOST]]
    facts: dict[str, Any] = {"lines": lines, "filters": filters, "older": older, "is_first": not cursor, "now": now}
    facts["problems"] = [problem.detail for problem in problems]
    return page(request, "activity.html", kinds=_KINDS, **facts)


def _address(row: Activity) -> str | None:
    """Return the page of the entry's object; None where there is none, or none any more."""
    kind, _, verb = row.action.partition(".")
    if row.action == "job.delete":
        return "/deleted"
    if verb in ("remove", "purge", "invite", "join"):
        return None
    if kind == "checkpoint" and (job := (row.details or {}).get("job")):
        return f"/jobs/{job}#checkpoints"
    pages = {
        "job": f"/jobs/{row.object_id}",
        "sweep": f"/sweeps/{row.object_id}",
        "dataset": f"/datasets/{quote(row.object_name or row.object_id, safe='')}",
        "worker": f"/workers#worker-{row.object_id}",
        "weights": f"/checkpoints#weights-{row.object_id[:16]}",
        "key": "/keys",
        "session": "/keys",
        "webhook": "/webhooks",
        "share": "/shares",
    }
    return pages.get(kind)
