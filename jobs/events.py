"""The events of a job: append-only, and numbered without a gap by the job's row."""

from __future__ import annotations

from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from jobs import access
from jobs.database import now_ms
from jobs.models import Event, Job
from jobs.webhooks import outbox
from wcl_core.text import without_paths


def record(session: Session, job_id: str, kind: str, data: dict[str, Any]) -> None:
    """Append an event that does not change the status, with the name of who caused it.

    Its message names no path of this machine.
    """
    data = data | access.by(session)
    if isinstance(message := data.get("message"), str):
        data = data | {"message": without_paths(message)}
    statement = (
        update(Job).where(Job.id == job_id).values(event_seq=Job.event_seq + 1, updated_at=now_ms())
    ).returning(Job.event_seq)
    seq = session.execute(statement, execution_options={"synchronize_session": False}).scalar_one()
    session.add(Event(job_id=job_id, seq=seq, type=kind, data=data))
    session.flush()
    outbox.on_event(session, job_id, seq, kind, data)
