"""The page of webhooks: list, create, test, switch on and off, remove, and the log of their deliveries."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Annotated, Any, Final, Literal, get_args

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import select

from api.http.auth import Owner, Submitter
from api.http.dependencies import TheDatabase, TheSettings
from api.http.idempotency import TheFormSubmission
from api.rest.webhooks import Event, Format, WebhookBody, fields_of
from api.web.forms.fields import body_of
from api.web.forms.refused import form_page
from api.web.render import page
from jobs import keys, usage
from jobs.access import Principal
from jobs.database import Database, database_time
from jobs.models import Key, Webhook
from jobs.webhooks import subscriptions
from wcl_core.protocol import (
    EMBEDDING_DEVIATION,
    EMBEDDING_RANKME,
    KNN_TOP1,
    LARGEST_SHARE,
    LEARNING_RATE,
    TRAIN_LOSS,
    VIEW_TOP1,
)

router = APIRouter(include_in_schema=False)

_DELIVERIES: Final = 50
_NAME: Final = 40  # characters of a key's name in the menu
_RULES_OF_FORM: Final = 3
# Metrics of most trainings, as proposals: a rule may name any other one.
_METRICS: Final = (TRAIN_LOSS, KNN_TOP1, VIEW_TOP1, EMBEDDING_DEVIATION, EMBEDDING_RANKME, LARGEST_SHARE, LEARNING_RATE)
_FORMATS: Final[Mapping[str, str]] = {"standard": "any program (signed JSON)", "slack": "Slack", "discord": "Discord"}
_KINDS: Final = (("", "all"), ("pretrain", "trainings"), ("evaluate", "evaluations"))
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
    rule_metric: Annotated[list[str], Form(max_length=20)] = [],  # noqa: B006 (FastAPI copies it)
    rule_direction: Annotated[list[str], Form(max_length=20)] = [],  # noqa: B006 (FastAPI copies it)
    rule_value: Annotated[list[str], Form(max_length=20)] = [],  # noqa: B006 (FastAPI copies it)
    stalled_minutes: Annotated[str, Form()] = "10",
    tag: Annotated[str, Form()] = "",
    job_name: Annotated[str, Form()] = "",
    kind: Annotated[str, Form()] = "",
    by: Annotated[str, Form()] = "",
) -> Response:
    """Create a webhook and show its secret once; a form that is sent again creates nothing."""
    rules = zip_longest(rule_metric, rule_direction, rule_value, fillvalue="")
    values = {
        "name": name.strip(),
        "url": url.strip(),
        "format": form,
        "events": events,
        "rules": [
            {"metric": metric.strip(), "direction": direction, "value": value.strip()}
            for metric, direction, value in rules
            if metric.strip() or value.strip()
        ],
        "stalled_minutes": stalled_minutes.strip(),
        "tag": tag.strip() or None,
        "job_name": job_name.strip() or None,
        "kind": kind or None,
        "by": by or None,
    }
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


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[:_NAME]}…"


def _page(
    request: Request, submitter: Principal, database: Database, chosen: str, new: Webhook | None = None
) -> Response:
    with database.read() as session:
        rows = subscriptions.all_of(session, submitter)
        log = subscriptions.deliveries(session, chosen, _DELIVERIES) if any(row.id == chosen for row in rows) else []
        owners = usage.names_of(session)
        choices = session.execute(select(Key.id, Key.name).where(*keys.is_active()).order_by(Key.name)).all()
        now = database_time(session)
    may_choose = "admin" in submitter.scopes
    context: dict[str, Any] = {
        "webhooks": rows,
        "chosen": next((row for row in rows if row.id == chosen), None),
        "deliveries": log,
        "new": new,
        "events": get_args(Event),
        "formats": [(each, _FORMATS.get(each, each)) for each in get_args(Format)],
        "chosen_events": WebhookBody.model_fields["events"].default,
        "shown_url": subscriptions.shown_url,
        "owners": owners,
        "key_choices": [("", "all keys"), *((key_id, _short(name)) for key_id, name in choices)] if may_choose else [],
        "kinds": _KINDS,
        "metrics": _METRICS,
        "max_rules": _RULES_OF_FORM,
    }
    return page(request, "webhooks.html", **context, now=now)


form_page(lambda request, submitter, database: _page(request, submitter, database, ""), "/webhooks")
