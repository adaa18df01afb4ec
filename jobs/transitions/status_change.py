"""The guarded statement behind every change of a status; no other code assigns a status."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jobs import access
from jobs.database import Signal, now_ms, signal
from jobs.models import Event, Job
from jobs.status import TERMINAL, Reason, Status
from jobs.webhooks import outbox
from wcl_core.text import without_paths


def move(
    session: Session,
    job_id: str,
    before: frozenset[Status],
    after: Status,
    event: str,
    *,
    reason: str | None = None,
    message: str | None = None,
    data: dict[str, Any] | None = None,
    **values: Any,
) -> bool:
    """Change the status if it is one of `before`, and append the event; return whether it changed."""
    message = message and without_paths(message)
    if after in TERMINAL:
        values["ended_at"] = now_ms()
    statement = (
        update(Job)
        .where(Job.id == job_id, Job.status.in_(before))
        .values(
            status=after,
            status_reason=reason,
            status_message=message,
            event_seq=Job.event_seq + 1,
            updated_at=now_ms(),
            **values,
        )
        .returning(Job.event_seq)
    )
    seq = session.execute(statement, execution_options={"synchronize_session": False}).scalar_one_or_none()
    if seq is None:
        return False
    facts = {"status": after, "reason": reason, "message": message} | (data or {}) | _by(session, job_id, after, reason)
    session.add(Event(job_id=job_id, seq=seq, type=event, data={k: v for k, v in facts.items() if v is not None}))
    session.flush()
    outbox.on_event(session, job_id, seq, event, facts)
    if after is Status.QUEUED:
        signal(session, Signal.DUE)
    elif after in TERMINAL:
        signal(session, Signal.MET)
    return True


def _by(session: Session, job_id: str, after: Status, reason: str | None) -> dict[str, str]:
    """Return who caused the change: of the end of a run, the person or key that requested it."""
    if (own := access.by(session)) or reason != Reason.USER:
        return own
    kind = "cancel_requested" if after is Status.CANCELLED else "pause_requested"
    newest = select(Event.data).where(Event.job_id == job_id, Event.type == kind).order_by(Event.seq.desc()).limit(1)
    request = session.execute(newest).scalar_one_or_none() or {}
    return {"by": request["by"]} if "by" in request else {}


def lock(session: Session, job_id: str) -> None:
    """Lock the row, so that its run cannot end between the two statements of a request."""
    session.execute(select(Job.id).where(Job.id == job_id).with_for_update(key_share=True))
