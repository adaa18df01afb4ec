"""Webhooks: messages to other programs, and the log of their deliveries."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from api.http.auth import Owner, Submitter
from api.http.dependencies import TheDatabase, TheSettings
from api.rest.job_bodies import Name
from api.rest.responses import Response, Time
from jobs.models import Webhook
from jobs.webhooks import subscriptions

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

Event = Literal[
    "job.succeeded", "job.failed", "job.cancelled", "job.lost", "job.collapsed", "job.stalled", "worker.lost"
]
Format = Literal["standard", "slack", "discord", "ntfy"]
_Url = Annotated[str, Field(min_length=1, max_length=2_000)]
_Events = Annotated[list[Event], Field(max_length=7)]
_Part = Annotated[str, Field(min_length=1, max_length=64)]
JobKind = Literal["pretrain", "evaluate"]
_Minutes = Annotated[int, Field(ge=1, le=10_080)]


class RuleBody(BaseModel):
    """A line of a metric; one message is sent when the metric passes it, and the next one after it was back."""

    model_config = ConfigDict(extra="forbid")

    metric: Annotated[str, Field(min_length=1, max_length=100)]
    direction: Literal["above", "below"]
    value: FiniteFloat


_Rules = Annotated[list[RuleBody], Field(max_length=20)]


class WebhookBody(BaseModel):
    """A webhook to create.

    `tag`, `job_name` (a part of the name), `kind` and `by` (the name or id of a key, whose jobs they are) limit the
    jobs.  Only a key with `admin` may name another key.  `stalled_minutes` is the time without a report after which
    `job.stalled` is sent.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "night", "url": "https://example.org/hook", "events": ["job.failed", "job.lost"]}]
        },
    )

    name: Name
    url: _Url
    format: Format = "standard"
    events: _Events = ["job.succeeded", "job.failed", "job.lost"]
    rules: _Rules = []
    stalled_minutes: _Minutes = 10
    tag: _Part | None = None
    job_name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    kind: JobKind | None = None
    by: Annotated[str, Field(min_length=1, max_length=200)] | None = None


class WebhookChange(BaseModel):
    """The fields to change; the others stay."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"enabled": False}]})

    name: Name | None = None
    url: _Url | None = None
    events: _Events | None = None
    rules: _Rules | None = None
    stalled_minutes: _Minutes | None = None
    tag: _Part | None = None
    job_name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    kind: JobKind | None = None
    enabled: bool | None = None


class WebhookResponse(Response):
    """A webhook without its secret.

    `url` leaves out the parts that are secrets of the receiver: the query, and for Slack, Discord and ntfy the path.
    `owner_id` is the key whose jobs the webhook is for, null for all; `own_jobs` is true if that key created it.
    """

    id: str
    name: str
    url: str
    format: str
    events: list[str]
    rules: list[dict[str, Any]]
    stalled_minutes: int
    tag: str | None
    job_name: str | None
    kind: str | None
    owner_id: str | None
    own_jobs: bool
    enabled: bool
    disabled_reason: str | None
    created_by: str | None
    created_at: Time


class NewWebhook(WebhookResponse):
    """A new webhook with the secret of its signatures.  No other response contains the secret."""

    secret: str


class Webhooks(Response):
    """Newest first."""

    items: list[WebhookResponse]


class DeliveryResponse(Response):
    """A message of a webhook; `id` is its `webhook-id`, `state` an open string: pending, delivered or failed."""

    id: str
    type: str
    job_id: str | None
    state: str
    attempts: int
    last_status: int | None
    last_error: str | None
    due_at: Time
    created_at: Time
    ended_at: Time | None


class Deliveries(Response):
    """Newest first."""

    items: list[DeliveryResponse]


def response_facts(row: Webhook) -> dict[str, Any]:
    """Return the fields of a response that the row has under another name or in another form."""
    return {
        "url": subscriptions.shown_url(row.url, row.format),
        "rules": row.rules or [],
        "own_jobs": row.owner_id is not None and row.owner_id == row.created_by,
        "enabled": row.disabled_at is None,
    }


def fields_of(body: WebhookBody | WebhookChange) -> dict[str, Any]:
    """Return the fields that a body sets, as the row holds them."""
    fields = body.model_dump(exclude_unset=isinstance(body, WebhookChange))
    optional = {"tag", "job_name", "kind"}
    fields = {name: value for name, value in fields.items() if value is not None or name in optional}
    if "rules" in fields:
        fields["rules"] = fields["rules"] or None
    if "events" in fields:
        fields["events"] = sorted(set(fields["events"]), key=fields["events"].index)
    return fields


@router.get("")
def list_webhooks(principal: Submitter, database: TheDatabase) -> Webhooks:
    """List the webhooks: all for a key with `admin`, else those of this key."""
    with database.read() as session:
        rows = subscriptions.all_of(session, principal)
    return Webhooks(items=[WebhookResponse.of(row, **response_facts(row)) for row in rows])


@router.post("", status_code=201)
def create_webhook(body: WebhookBody, principal: Submitter, database: TheDatabase, settings: TheSettings) -> NewWebhook:
    """Create a webhook and return the secret of its signatures.

    A webhook of a key without `admin` is for the jobs of this key.
    """
    fields = fields_of(body)
    row, secret = database.write(lambda session: subscriptions.create(session, principal, settings, **fields))
    return NewWebhook.of(row, **response_facts(row), secret=secret)


@router.get("/{webhook_id}")
def get_webhook(webhook_id: str, principal: Submitter, database: TheDatabase) -> WebhookResponse:
    """Return a webhook."""
    with database.read() as session:
        row = subscriptions.get(session, principal, webhook_id)
    return WebhookResponse.of(row, **response_facts(row))


@router.patch("/{webhook_id}")
def change_webhook(
    webhook_id: str, body: WebhookChange, principal: Owner, database: TheDatabase, settings: TheSettings
) -> WebhookResponse:
    """Change fields of a webhook.  `enabled` switches it off and on; pending messages wait meanwhile."""
    fields = fields_of(body)
    row = database.write(lambda session: subscriptions.change(session, principal, settings, webhook_id, **dict(fields)))
    return WebhookResponse.of(row, **response_facts(row))


@router.delete("/{webhook_id}", status_code=204)
def remove_webhook(webhook_id: str, principal: Owner, database: TheDatabase) -> None:
    """Remove a webhook with its messages; those that are pending are not sent."""
    database.write(lambda session: subscriptions.remove(session, principal, webhook_id))


@router.post("/{webhook_id}/test", status_code=202)
def send_test(webhook_id: str, principal: Owner, database: TheDatabase) -> DeliveryResponse:
    """Add a test message.  A server sends it within seconds; the list of deliveries shows the result."""
    return database.write(lambda session: DeliveryResponse.of(subscriptions.send_test(session, principal, webhook_id)))


@router.get("/{webhook_id}/deliveries")
def list_deliveries(
    webhook_id: str,
    principal: Submitter,
    database: TheDatabase,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Deliveries:
    """List the newest messages of a webhook with the results of sending them."""
    with database.read() as session:
        subscriptions.get(session, principal, webhook_id)
        rows = subscriptions.deliveries(session, webhook_id, limit)
    return Deliveries(items=[DeliveryResponse.of(row) for row in rows])


@router.post("/{webhook_id}/deliveries/{delivery_id}/redeliver", status_code=202)
def redeliver(webhook_id: str, delivery_id: str, principal: Owner, database: TheDatabase) -> DeliveryResponse:
    """Send a message again that was delivered or has failed, under the same `webhook-id`."""
    return database.write(
        lambda session: DeliveryResponse.of(subscriptions.redeliver(session, principal, webhook_id, delivery_id))
    )
