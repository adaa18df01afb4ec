"""The page of webhooks: list, create, test, switch on and off, remove, and the log of their deliveries."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, get_args

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from api.http.auth import Owner, Submitter
from api.http.dependencies import TheDatabase, TheSettings
from api.http.idempotency import TheFormSubmission
from api.rest.webhooks import Event, Format, WebhookBody, fields_of
from api.web.forms.fields import body_of
from api.web.render import page
from jobs.database import Database, database_time
from jobs.models import Webhook
from jobs.webhooks import subscriptions

router = APIRouter(include_in_schema=False)

_DELIVERIES: Final = 50
Verb = Literal["test", "enable", "disable", "remove"]


@router.get("/webhooks")
def webhooks_page(
    request: Request,
    submitter: Submitter,
    database: TheDatabase,
    webhook: Annotated[str, Query(max_length=36)] = "",
) -> Response:
    """Return the list of webhooks, with the log of the one that the address names."""
    return _page(request, submitter, database, webhook)


@router.post("/webhooks")
def create(
    request: Request,
    submitter: Submitter,
    database: TheDatabase,
    settings: TheSettings,
    submission: TheFormSubmission,
    name: Annotated[str, Form()] = "",
    url: Annotated[str, Form()] = "",
    form: Annotated[str, Form(alias="format")] = "standard",
    events: Annotated[list[str], Form(max_length=20)] = [],  # noqa: B006 (FastAPI copies it)
    tag: Annotated[str, Form()] = "",
) -> Response:
    """Create a webhook and show its secret once; a form that is sent again creates nothing."""
    values = {"name": name.strip(), "url": url.strip(), "format": form, "events": events, "tag": tag.strip() or None}
    body = body_of(WebhookBody, values)

    row = submission.create(
        body.model_dump(),
        Webhook,
        lambda session: subscriptions.create(session, submitter, settings, **fields_of(body))[0],
    )
    if submission.is_replay:
        return RedirectResponse(f"/webhooks?webhook={row.id}", status_code=303)
    return _page(request, submitter, database, row.id, new=row)


@router.post("/webhooks/{webhook_id}/{verb}")
def change(webhook_id: str, verb: Verb, submitter: Owner, database: TheDatabase, settings: TheSettings) -> Response:
    """Send a test message, switch the webhook on or off, or remove it; redirect to its log."""
    if verb == "test":
        database.write(lambda session: subscriptions.send_test(session, submitter, webhook_id))
    elif verb == "remove":
        database.write(lambda session: subscriptions.remove(session, submitter, webhook_id))
        return RedirectResponse("/webhooks", status_code=303)
    else:
        enabled = verb == "enable"
        database.write(lambda session: subscriptions.change(session, submitter, settings, webhook_id, enabled=enabled))
    return RedirectResponse(f"/webhooks?webhook={webhook_id}", status_code=303)


@router.post("/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver")
def redeliver(webhook_id: str, delivery_id: str, submitter: Owner, database: TheDatabase) -> Response:
    """Send a message again; redirect to the log."""
    database.write(lambda session: subscriptions.redeliver(session, submitter, webhook_id, delivery_id))
    return RedirectResponse(f"/webhooks?webhook={webhook_id}", status_code=303)


def _page(
    request: Request, submitter: Submitter, database: Database, chosen: str, new: Webhook | None = None
) -> Response:
    with database.read() as session:
        rows = subscriptions.all_of(session, submitter)
        log = subscriptions.deliveries(session, chosen, _DELIVERIES) if any(row.id == chosen for row in rows) else []
        now = database_time(session)
    context: dict[str, Any] = {
        "webhooks": rows,
        "chosen": next((row for row in rows if row.id == chosen), None),
        "deliveries": log,
        "new": new,
        "events": get_args(Event),
        "formats": get_args(Format),
        "chosen_events": WebhookBody.model_fields["events"].default,
        "shown_url": subscriptions.shown_url,
    }
    return page(request, "webhooks.html", **context, now=now)
