"""The use of devices by the keys that jobs are of: stored for each day when an attempt ends."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.attempts import AttemptRef
from jobs.database import insert
from jobs.models import SEES_HIDDEN, Attempt, DeviceUse, Job

DAY_MS = 86_400_000


def charge(session: Session, attempt: AttemptRef) -> None:
    """Add an attempt that the transaction has ended to the use of its job's key, on each day that it ran on."""
    statement = select(Attempt.started_at, Attempt.ended_at, Job.created_by, Job.gpus, Job.nodes).join(Job)
    row = session.execute(statement.where(attempt.is_row()), execution_options=SEES_HIDDEN).one()
    devices = max(1, row.gpus * row.nodes)
    for place, (day, milliseconds) in enumerate(_by_day(row.started_at, max(row.started_at, row.ended_at))):
        values = {
            "gpu_ms": milliseconds * devices if row.gpus else 0,
            "cpu_ms": 0 if row.gpus else milliseconds * devices,
            "jobs": int(attempt.number == 1 and place == 0),
            "attempts": int(place == 0),
        }
        added = insert(session, DeviceUse).values(
            owner_id=row.created_by or "", day=day, updated_at=row.ended_at, **values
        )
        sums = {name: getattr(DeviceUse, name) + added.excluded[name] for name in values}
        sums["updated_at"] = added.excluded.updated_at
        key = [DeviceUse.owner_id, DeviceUse.day]
        session.execute(added.on_conflict_do_update(index_elements=key, set_=sums))


def _by_day(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield each day of a time, with the milliseconds on it; a time of no length has one day."""
    for day in range(start // DAY_MS, end // DAY_MS + 1):
        milliseconds = min(end, (day + 1) * DAY_MS) - max(start, day * DAY_MS)
        if milliseconds > 0 or start == end:
            yield day, milliseconds
