"""The webhooks themselves, and the log of their deliveries.

A key with `admin` manages all webhooks, and chooses whose jobs each is for.  Another key manages its own ones, and they
are for its own jobs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, and_, delete, func, select, update
from sqlalchemy.orm import Session

from jobs import access, activity, queries
from jobs.database import new_id, now_ms
from jobs.errors import Conflict, FieldError, Invalid, existing
from jobs.keys import Principal
from jobs.models import Job, Webhook, WebhookDelivery, WebhookLevel
from jobs.settings import Settings
from jobs.status import TERMINAL
from jobs.webhooks import messages, outbox, targets

MOST = 100  # webhooks of a service: each event is compared with all of them
STATES = ("pending", "delivered", "failed")
_DISABLED_BY_USER = "disabled by a user"


def create(
    session: Session, principal: Principal, settings: Settings, *, by: str | None = None, **fields: Any
) -> tuple[Webhook, str]:
    """Create a webhook.

    Args:
        session: a writing transaction.
        principal: the key that creates it; without `admin`, the webhook is for the jobs of this key.
        settings: that allow addresses.
        by: name or id of the key whose jobs the webhook is for; None for all, without `admin` for the own ones.
        **fields: of the row.

    Returns:
        (its row, the secret, which no other response holds).

    Raises:
        Invalid: a field cannot be one.
        Conflict: there are too many webhooks.
    """
    _check(fields, settings)
    if session.execute(select(func.count()).select_from(Webhook)).scalar_one() >= MOST:
        raise Conflict(f"there are {MOST} webhooks, the most of a service; remove one")
    secret = messages.new_secret()
    owner = _owner(session, principal, by)
    row = Webhook(id=new_id(), created_by=principal.key_id, owner_id=owner, secret=secret, **fields)
    row.project_id = access.new_project(session)
    session.add(row)
    session.flush()
    session.refresh(row)
    activity.note(session, "webhook.create", row.id, row.name)
    return row, secret


def _owner(session: Session, principal: Principal, by: str | None) -> str | None:
    """Return the id of the key whose jobs a webhook is for; None for the jobs of all keys."""
    is_admin = "admin" in principal.scopes
    if by is None:
        return None if is_admin else principal.key_id
    # Another key's name is no news for a key without `admin`: both cases have one text.
    owner = queries.key_of(session, by)
    if not is_admin and owner != principal.key_id:
        raise Invalid([FieldError("/by", "expected this key, or none: only an administrator's key may name another")])
    if owner is None:
        queries.check_owner_filter(session, by, "/by")
    return owner


def change(session: Session, principal: Principal, settings: Settings, webhook_id: str, **fields: Any) -> Webhook:
    """Change fields of a webhook; `enabled` switches it on or off.

    Raises:
        NotFound: there is no such webhook of this key.
        Invalid: a field cannot be one.
    """
    row = get(session, principal, webhook_id)
    enabled = fields.pop("enabled", None)
    _check({name: getattr(row, name) for name in ("url", "format", "events", "rules")} | fields, settings)
    if "rules" in fields:
        session.execute(delete(WebhookLevel).where(WebhookLevel.webhook_id == webhook_id))
    for name, value in fields.items():
        setattr(row, name, value)
    session.flush()
    if enabled is True:
        session.execute(_of(webhook_id).values(disabled_at=None, disabled_reason=None))
    elif enabled is False:
        disable(session, webhook_id, _DISABLED_BY_USER)
    session.refresh(row)
    changed = sorted(fields) + ([] if enabled is None else ["enabled"])
    activity.note(session, "webhook.change", row.id, row.name, fields=changed)  # a value may be a secret
    return row


def disable(session: Session, webhook_id: str, reason: str) -> None:
    """Disable a webhook: no event adds messages for it.  Pending messages wait until it is enabled again."""
    statement = _of(webhook_id).where(Webhook.disabled_at.is_(None))
    session.execute(statement.values(disabled_at=now_ms(), disabled_reason=reason))


def _of(webhook_id: str) -> Any:
    return update(Webhook).where(Webhook.id == webhook_id).execution_options(synchronize_session=False)


def _check(fields: dict[str, Any], settings: Settings) -> None:
    targets.check_url(fields["url"], settings)
    if fields["format"] == "ntfy" and not urlsplit(fields["url"]).path.strip("/"):
        raise Invalid([FieldError("/url", "expected the address of a topic, such as https://ntfy.sh/TOPIC")])
    if not fields["events"] and not fields["rules"]:
        raise Invalid([FieldError("/events", f"expected at least one event ({', '.join(outbox.EVENTS)}) or a rule")])


def visible(principal: Principal) -> ColumnElement[bool]:
    """Return the condition of webhooks that a key manages."""
    if "admin" in principal.scopes:
        return Webhook.id.is_not(None)
    return and_(Webhook.owner_id == principal.key_id, Webhook.created_by == principal.key_id)


def all_of(session: Session, principal: Principal) -> Sequence[Webhook]:
    """Return the webhooks that a key manages, newest first."""
    return session.execute(select(Webhook).where(visible(principal)).order_by(Webhook.id.desc())).scalars().all()


def get(session: Session, principal: Principal, webhook_id: str) -> Webhook:
    """Return a webhook that the key manages.

    Raises:
        NotFound: there is none.
    """
    statement = select(Webhook).where(Webhook.id == webhook_id, visible(principal))
    return existing(session.execute(statement).scalar_one_or_none(), "webhook", webhook_id)


def remove(session: Session, principal: Principal, webhook_id: str) -> None:
    """Remove a webhook with its messages.

    Raises:
        NotFound: there is no such webhook of this key.
    """
    activity.note(session, "webhook.remove", webhook_id, get(session, principal, webhook_id).name)
    # Locked first: the transaction of an event that adds a message refers to the row, and commits before or fails.
    session.execute(select(Webhook.id).where(Webhook.id == webhook_id).with_for_update())
    session.execute(delete(WebhookLevel).where(WebhookLevel.webhook_id == webhook_id))
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook_id))
    session.execute(delete(Webhook).where(Webhook.id == webhook_id))


def deliveries(session: Session, webhook_id: str, limit: int) -> Sequence[WebhookDelivery]:
    """Return the newest messages of a webhook, newest first."""
    of_webhook = select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook_id)
    return session.execute(of_webhook.order_by(WebhookDelivery.id.desc()).limit(limit)).scalars().all()


def send_test(session: Session, principal: Principal, webhook_id: str) -> WebhookDelivery:
    """Add a test message, which a server sends.

    Raises:
        NotFound: there is no such webhook of this key.
        Conflict: it is disabled.
    """
    webhook = get(session, principal, webhook_id)
    if webhook.disabled_at is not None:
        raise Conflict("the webhook is disabled; enable it first")
    activity.note(session, "webhook.test", webhook.id, webhook.name)
    return outbox.add_test(session, webhook)


def redeliver(session: Session, principal: Principal, webhook_id: str, delivery_id: str) -> WebhookDelivery:
    """Send a message again, under the same id.

    Raises:
        NotFound: there is no such message of a webhook of this key.
        Conflict: it is still pending.
    """
    webhook = get(session, principal, webhook_id)
    of_webhook = (WebhookDelivery.id == delivery_id, WebhookDelivery.webhook_id == webhook_id)
    row = existing(
        session.execute(select(WebhookDelivery).where(*of_webhook)).scalar_one_or_none(), "delivery", delivery_id
    )
    ended = update(WebhookDelivery).where(*of_webhook, WebhookDelivery.state != "pending")
    again = ended.values(
        state="pending", due_at=now_ms(), give_up_at=now_ms() + outbox.GIVE_UP_MS, ended_at=None, leased_until=None
    )
    moved = session.execute(again.returning(WebhookDelivery.id), execution_options={"synchronize_session": False})
    if moved.scalar_one_or_none() is None:
        raise Conflict("the message is pending; it is sent without a request")
    activity.note(session, "webhook.redeliver", webhook.id, webhook.name, delivery=delivery_id)
    session.refresh(row)
    return row


def counts_by_state(session: Session) -> Counter[str]:
    """Return the number of messages in the log by state."""
    counts = Counter(dict.fromkeys(STATES, 0))
    rows = session.execute(select(WebhookDelivery.state, func.count()).group_by(WebhookDelivery.state))
    counts.update(dict(rows.all()))
    return counts


def shown_url(url: str, form: str) -> str:
    """Return a URL for responses and pages, without the parts that are secrets of the receiver.

    The addresses of Slack, Discord and ntfy are secrets as a whole: each is enough to send.
    """
    parts = urlsplit(url)
    if form == "standard":
        return parts._replace(query="…" if parts.query else "").geturl()
    return f"{parts.scheme}://{parts.netloc}/…"


def expire(session: Session, log_days: float) -> None:
    """Delete old messages that have ended, messages too old to be sent, and levels of jobs that have ended."""
    oldest = now_ms() - int(log_days * 86_400_000)
    late = update(WebhookDelivery).where(WebhookDelivery.state == "pending", WebhookDelivery.give_up_at < now_ms())
    session.execute(late.values(state="failed", ended_at=now_ms()))  # of a webhook that is disabled
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.ended_at < oldest))
    unfinished = select(Job.id).where(Job.id == WebhookLevel.job_id, Job.status.not_in(TERMINAL))
    session.execute(delete(WebhookLevel).where(~unfinished.exists()))  # also those of deleted jobs
