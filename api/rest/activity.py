"""The activity log: who did what, to which object, and when."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from api.http.auth import ServiceAdmin
from api.http.dependencies import TheDatabase
from api.rest.responses import Json, Response, Time
from jobs import activity
from jobs.models import Activity

router = APIRouter(prefix="/v1/activity", tags=["operations"])


class ActivityResponse(Response):
    """An entry; `action` is an open string: the object's kind and what happened, such as `job.cancel`.

    `actor` is the name of the person or key at that time, and `actor_id` the id of the key; empty for the server itself
    and for a command on its machine.  `title` and `text` are action and details for people.  Where a value changed,
    `details` has the old one in `former`.
    """

    id: str
    at: Time
    actor: str
    actor_id: str
    action: str
    object_id: str
    object_name: str
    details: Json | None
    title: str
    text: str


class ActivityPage(Response):
    """A part of the log, newest first; `cursor=next_cursor` requests the next part."""

    items: list[ActivityResponse]
    next_cursor: str | None


@router.get("")
def list_activity(
    principal: ServiceAdmin,
    database: TheDatabase,
    actor: Annotated[str | None, Query(description="Name or id of a person or key.", max_length=200)] = None,
    action: Annotated[str | None, Query(description="An action, or its first part: job, key.", max_length=64)] = None,
    target: Annotated[str | None, Query(description="Id or name of the object.", max_length=200)] = None,
    since: AwareDatetime | None = None,
    until: Annotated[AwareDatetime | None, Query(description="Only entries before this time.")] = None,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the previous part.", max_length=36)] = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> ActivityPage:
    """List what people and keys have done, newest first."""
    filters = {"actor": actor, "action": action, "target": target, "before": cursor}
    with database.read() as session:
        rows = activity.entries(
            session, **filters, since=_milliseconds(since), until=_milliseconds(until), limit=limit + 1
        )
    next_cursor = rows[limit - 1].id if len(rows) > limit else None
    return ActivityPage(items=[_entry(row) for row in rows[:limit]], next_cursor=next_cursor)


def _entry(row: Activity) -> ActivityResponse:
    return ActivityResponse.of(row, title=activity.title(row.action), text=activity.described(row.details))


def _milliseconds(time: datetime | None) -> int | None:
    return None if time is None else int(time.timestamp() * 1000)
