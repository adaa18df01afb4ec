"""The page that says which jobs a request changes before it does, and the request itself."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from api.http.auth import Owner, Submitter
from api.http.dependencies import TheDatabase
from api.web.jobs import filters_of_query
from api.web.render import page
from jobs import bulk
from jobs.bulk import AT_ONCE, MOST, Changed, Verb
from jobs.database import Database

router = APIRouter(include_in_schema=False)

_Ids = Annotated[list[str], Query(max_length=MOST)]
# What happens to the jobs, and the participle for the jobs that were changed.
_TEXTS: Final[dict[Verb, tuple[str, str]]] = {
    "cancel": (
        "Running jobs end at once and keep their checkpoints. A cancelled job can be retried.",
        "Cancelled",
    ),
    "pause": (
        "Running jobs save a checkpoint and leave their worker. Queued jobs wait until they are resumed.",
        "Paused",
    ),
    "resume": ("They are queued again, and continue from their newest checkpoint.", "Resumed"),
    "archive": ("The lists leave them out, with the evaluations below them. Nothing is removed.", "Archived"),
    "unarchive": ("The lists show them again.", "Unarchived"),
}


@router.get("/change/{verb}")
def change_page(
    request: Request,
    verb: Verb,
    submitter: Submitter,
    database: TheDatabase,
    job: _Ids = [],  # noqa: B006 (FastAPI copies it)
    group: _Ids = [],  # noqa: B006
    matches: Annotated[str, Query(alias="matching", max_length=2000)] = "",
) -> Response:
    """Return which jobs a request would change, with a button; nothing is changed yet."""
    with database.read() as session:
        filters = filters_of_query(matches) if matches else None
        ids = bulk.selected(session, job, group) if filters is None else bulk.matching(session, verb, filters)
        changed = bulk.listed(session, verb, ids[:MOST])
    return _page(request, verb, changed, is_done=False, has_more=len(ids) > MOST)


@router.post("/jobs/{verb}")
def change(
    request: Request,
    verb: Verb,
    submitter: Owner,
    database: TheDatabase,
    job: Annotated[list[str], Form(max_length=MOST)] = [],  # noqa: B006
) -> Response:
    """Change jobs; redirect to the list, or return which of them do not change, and why."""
    changed = _changed(database, verb, list(dict.fromkeys(job)))
    if changed.refused:
        status = 403 if any(each.is_foreign for each in changed.refused) else 409
        return _page(request, verb, changed, is_done=True, status=status)
    return RedirectResponse("/?archived=only" if verb == "unarchive" else "/", status_code=303)


def _changed(database: Database, verb: Verb, job_ids: list[str]) -> Changed:
    """Change jobs, some in a transaction, so that each one is short."""
    total = Changed()
    for start in range(0, len(job_ids), AT_ONCE):
        total.add(database.write(partial(bulk.change, verb=verb, job_ids=job_ids[start : start + AT_ONCE])))
    return total


def _page(
    request: Request, verb: Verb, changed: Changed, *, is_done: bool, has_more: bool = False, status: int = 200
) -> Response:
    about, done = _TEXTS[verb]
    context: dict[str, Any] = {"verb": verb, "about": about, "done": done, "changed": changed}
    return page(request, "change.html", status, **context, is_done=is_done, has_more=has_more, most=MOST)
