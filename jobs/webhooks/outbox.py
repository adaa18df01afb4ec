"""The messages that follow from events: one row for each webhook and event, in the transaction of the event.

Nothing here sends.  A metric beyond the line of a rule is one message, until the metric is back (edge-triggered).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jobs.database import database_time, insert, new_id
from jobs.errors import existing
from jobs.models import Attempt, Job, Tag, Webhook, WebhookDelivery, WebhookLevel, Worker
from jobs.status import Reason

ENDS = ("job.succeeded", "job.failed", "job.cancelled")
LOST, COLLAPSED, STALLED, METRIC, WORKER_LOST = (
    "job.lost",
    "job.collapsed",
    "job.stalled",
    "job.metric",
    "worker.lost",
)
TEST = "webhook.test"
EVENTS = (*ENDS, LOST, COLLAPSED, STALLED, WORKER_LOST)  # that a webhook may choose; rules choose metrics
GIVE_UP_MS = 3 * 86_400_000  # after so long an undelivered message has failed


@dataclass(frozen=True)
class Rule:
    """A line of a metric.

    Attributes:
        direction: above or below: the side of the line that is reported.
    """

    metric: str
    direction: str
    value: float

    @property
    def name(self) -> str:
        return f"{self.metric} {self.direction} {self.value!r}"

    def is_beyond(self, value: float) -> bool:
        """Return whether a value is on the reported side; the line itself is not."""
        return value > self.value if self.direction == "above" else value < self.value


def on_event(session: Session, job_id: str, seq: int, event: str, data: Mapping[str, Any]) -> None:
    """Add the messages about an event of a job; a webhook gets one, of the first type that it has chosen."""
    types = _types(event, data)
    webhooks = [each for each in _enabled(session) if set(types) & set(each.events)] if types else []
    if not webhooks:
        return
    facts = _Facts.read(session, job_id)
    for webhook in webhooks:
        if facts.concern(webhook):
            kind = next(each for each in types if each in webhook.events)
            _add(session, webhook, f"{job_id}:{seq}", kind, facts.as_json(), job_id)


def _types(event: str, data: Mapping[str, Any]) -> list[str]:
    types = [each for each in ENDS if each == f"job.{event}"]
    if "status" in data and data.get("reason") == Reason.WORKER_LOST:
        types.append(LOST)
    if event == "warning" and data.get("reason") == Reason.COLLAPSE:
        types.append(COLLAPSED)
    return types


def on_metrics(
    session: Session, job_id: str, attempt: int, reported: Iterable[tuple[int, int, Mapping[str, float | None]]]
) -> None:
    """Add the messages about metrics that have passed the line of a rule.

    Args:
        session: the transaction that stores the values.
        job_id: whose values they are.
        attempt: its number.
        reported: (number of the record, step, values), in order.
    """
    webhooks = [each for each in _enabled(session) if each.rules]
    if not webhooks:
        return
    facts = _Facts.read(session, job_id)
    batch = list(reported)
    for webhook in webhooks:
        for rule in (Rule(**each) for each in webhook.rules or () if facts.concern(webhook)):
            _follow(session, webhook, rule, facts, attempt, batch)


def _follow(
    session: Session,
    webhook: Webhook,
    rule: Rule,
    facts: _Facts,
    attempt: int,
    batch: Sequence[tuple[int, int, Mapping[str, float | None]]],
) -> None:
    values = [(seq, step, value) for seq, step, each in batch if (value := each.get(rule.metric)) is not None]
    if not values:
        return
    key = {"webhook_id": webhook.id, "job_id": facts.id, "rule": rule.name}
    was_beyond = is_beyond = session.get(WebhookLevel, key) is not None
    for seq, step, value in values:
        if rule.is_beyond(value) and not is_beyond:
            line = {"name": rule.metric, "value": value, "step": step, "direction": rule.direction, "line": rule.value}
            subject = f"{facts.id}:{attempt}:{seq}:{rule.name}"
            if _add(session, webhook, subject, METRIC, facts.as_json() | {"metric": line}, facts.id) is None:
                return
        is_beyond = rule.is_beyond(value)
    if is_beyond and not was_beyond:
        session.execute(insert(session, WebhookLevel).values(**key).on_conflict_do_nothing())
    elif was_beyond and not is_beyond:
        session.execute(delete(WebhookLevel).filter_by(**key))


def on_worker_lost(session: Session, worker_id: str, heartbeats: int) -> None:
    """Add the messages about a lost worker, for webhooks that are for all jobs."""
    name = session.execute(select(Worker.name).where(Worker.id == worker_id)).scalar_one()
    for webhook in _enabled(session):
        is_for_all = not (webhook.owner_id or webhook.tag or webhook.job_name or webhook.kind)
        if WORKER_LOST in webhook.events and is_for_all:
            worker = {"worker": {"id": worker_id, "name": name}}
            _add(session, webhook, f"worker:{worker_id}:{heartbeats}", WORKER_LOST, worker)


def on_stalled(session: Session, webhook_id: str, job_id: str, attempt: int, delivered_seq: int) -> None:
    """Add the message about an open attempt that has reported nothing since a record, once for each standstill."""
    same = (Attempt.job_id == job_id, Attempt.number == attempt, Attempt.delivered_seq == delivered_seq)
    still = session.execute(select(Attempt.number).where(*same, Attempt.ended_at.is_(None))).first()
    webhook = session.get(Webhook, webhook_id)
    if still is None or webhook is None or webhook.disabled_at is not None:
        return
    if (facts := _Facts.read(session, job_id)).concern(webhook):
        data = facts.as_json() | {"stalled_minutes": webhook.stalled_minutes}
        _add(session, webhook, f"{job_id}:{attempt}:stalled:{delivered_seq}", STALLED, data, job_id)


def add_test(session: Session, webhook: Webhook) -> WebhookDelivery:
    """Add a test message and return its row."""
    text = "A test message of the WCL service."
    delivery_id = _add(session, webhook, f"test:{new_id()}", TEST, {"message": text})
    row = None if delivery_id is None else session.get(WebhookDelivery, delivery_id)
    return existing(row, "webhook", webhook.id)


def _enabled(session: Session) -> Sequence[Webhook]:
    return session.execute(select(Webhook).where(Webhook.disabled_at.is_(None)).order_by(Webhook.id)).scalars().all()


@dataclass(frozen=True)
class _Facts:
    """The facts of a job that filters and messages need, as the transaction sees them."""

    id: str
    name: str
    kind: str
    status: str
    reason: str | None
    message: str | None
    attempt: int
    created_by: str | None
    project_id: str
    tags: tuple[str, ...]

    @classmethod
    def read(cls, session: Session, job_id: str) -> _Facts:
        columns = (Job.name, Job.kind, Job.status, Job.status_reason, Job.status_message, Job.attempt, Job.created_by)
        row = session.execute(select(*columns, Job.project_id).where(Job.id == job_id)).one()
        tags = session.execute(select(Tag.tag).where(Tag.job_id == job_id).order_by(Tag.tag)).scalars()
        return cls(job_id, *row, tags=tuple(tags))

    def concern(self, webhook: Webhook) -> bool:
        """Return whether the webhook's filter takes the job."""
        return (
            webhook.project_id == self.project_id
            and webhook.owner_id in (None, self.created_by)
            and webhook.kind in (None, self.kind)
            and (webhook.tag is None or webhook.tag in self.tags)
            and (webhook.job_name is None or webhook.job_name.casefold() in self.name.casefold())
        )

    def as_json(self) -> dict[str, Any]:
        fields = ("id", "name", "kind", "status", "reason", "message", "attempt")
        return {"job": {name: getattr(self, name) for name in fields} | {"tags": list(self.tags)}}


def _add(
    session: Session, webhook: Webhook, subject: str, kind: str, data: dict[str, Any], job_id: str | None = None
) -> str | None:
    """Add a message unless the event has one, and return its id; None if the webhook was removed meanwhile."""
    # Locked as by the foreign key: a removal that commits in between would make the event's transaction fail.
    lock = select(Webhook.id).where(Webhook.id == webhook.id).with_for_update(read=True, key_share=True)
    if session.execute(lock).scalar_one_or_none() is None:
        return None
    now = database_time(session)
    delivery_id = new_id()
    values = {
        "id": delivery_id,
        "webhook_id": webhook.id,
        "subject": subject,
        "type": kind,
        "job_id": job_id,
        "payload": {"type": kind, "timestamp": datetime.fromtimestamp(now / 1000, UTC).isoformat(), "data": data},
        "state": "pending",
        "attempts": 0,
        "due_at": now,
        "give_up_at": now + GIVE_UP_MS,
    }
    session.execute(insert(session, WebhookDelivery).values(values).on_conflict_do_nothing())
    return delivery_id
