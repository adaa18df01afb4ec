"""What an operator watches: the queue, the ends of jobs and attempts of the last hour, workers and deliveries.

The numbers of the last hour come from the database, so they are the same on each server, and neither a restart nor the
deletion of old jobs changes their meaning.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from jobs import activity, keys, queries
from jobs.database import Database, now_ms, project_of
from jobs.eligibility import is_due
from jobs.models import Activity, Attempt, Checkpoint, Job, Worker
from jobs.status import HELD, TERMINAL, Reason, Status

HOUR_MS = 3_600_000
_BACKUP, _BACKUPS = "backup.create", "backups"  # action and object in the activity log
_KEPT_SECONDS = 60.0


@dataclass(frozen=True)
class Queue:
    """Numbers of jobs; each has an entry for every state or reason, 0 where there is none.

    Attributes:
        jobs: jobs that have not ended, by status.
        paused: paused jobs by reason.
        oldest_due_seconds: by pool, the seconds for which the oldest job that could start has waited.
        ended: jobs that ended in the last hour, by status and reason; the reason of success is empty.
    """

    jobs: Mapping[str, int]
    paused: Mapping[str, int]
    oldest_due_seconds: Mapping[str, float]
    ended: Mapping[tuple[str, str], int]


def queue(session: Session) -> Queue:
    """Read the numbers of jobs; each statement reads a range of an index."""
    now, count = _now(session), func.count()
    jobs = Counter({str(status): 0 for status in Status if status not in TERMINAL})
    jobs.update(queries.counts_by_status(session))
    paused = Counter({str(reason): 0 for reason in (Reason.USER, *sorted(HELD))})
    is_paused = Job.status == Status.PAUSED
    paused.update(_counts(session, select(Job.status_reason, count).where(is_paused).group_by(Job.status_reason)))
    waiting = select(Job.pool, func.min(Job.updated_at)).where(is_due()).group_by(Job.pool)

    ended = Counter({("succeeded", ""): 0, ("cancelled", Reason.USER.value): 0})
    ended.update({("failed", str(reason)): 0 for reason in Reason})
    ends = select(Job.status, Job.status_reason, count).where(Job.ended_at > now - HOUR_MS)
    for status, reason, number in session.execute(ends.group_by(Job.status, Job.status_reason)):
        ended[status, reason or ""] += number
    oldest = {pool: max(0, now - at) / 1000 for pool, at in session.execute(waiting)}
    return Queue(jobs, paused, oldest, ended)


def attempts_of_hour(session: Session) -> tuple[int, Mapping[str, int]]:
    """Return the claims of the last hour, and the ends by reason, which is `succeeded` for a good one."""
    since = _now(session) - HOUR_MS
    ends = Counter({str(reason): 0 for reason in (Status.SUCCEEDED, *Reason)})
    ended = select(Attempt.end_reason, func.count()).where(Attempt.ended_at > since)
    ends.update(_counts(session, ended.group_by(Attempt.end_reason)))
    is_recent = or_(Attempt.ended_at.is_(None), Attempt.ended_at > since)
    started = select(func.count()).select_from(Attempt).where(is_recent, Attempt.started_at > since)
    return session.execute(started).scalar_one(), ends


def workers_lost(session: Session) -> int:
    """Return the number of workers that were lost in the last hour."""
    is_lost = (Worker.state == "lost", Worker.seen_at > _now(session) - HOUR_MS)
    return session.execute(select(func.count()).select_from(Worker).where(*is_lost)).scalar_one()


def administrator_seconds(session: Session) -> float:
    """Return the time until the last key with `admin` in all projects expires; infinite if one does not."""
    return max(0.0, keys.administrators_end(session) - _now(session)) / 1000


def backup_age_seconds(session: Session) -> float:
    """Return the age of the newest backup; infinite where none was made."""
    newest = select(Activity.at).where(Activity.object_id == _BACKUPS, Activity.action == _BACKUP)
    at = session.execute(newest.order_by(Activity.id.desc()).limit(1)).scalar_one_or_none()
    return math.inf if at is None else max(0, _now(session) - at) / 1000


def _now(session: Session) -> int:
    return session.execute(select(now_ms())).scalar_one()


def note_backup(database: Database, name: str, size: int) -> None:
    """Add a backup to the activity log, which tells the age of the newest one.

    Raises:
        DBAPIError: the database takes no changes.
    """
    facts = {"backup": name, "size": size}
    database.write(lambda session: activity.note(session, _BACKUP, _BACKUPS, **facts, by=activity.OPERATOR))


class FlawCounts:
    """The numbers of damaged and missing checkpoints; a count reads all checkpoints, so it is kept for a minute.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[str | None, tuple[float, dict[str, int]]] = {}  # by the project of the reader

    def read(self, session: Session) -> dict[str, int]:
        """Return the numbers by state, of the project of the transaction or of all."""
        project_id, now = project_of(session), self._clock()
        if project_id not in self._kept or now - self._kept[project_id][0] > _KEPT_SECONDS:
            columns = (func.count(Checkpoint.damaged_at), func.count(Checkpoint.missing_at))
            row = session.execute(select(*columns).where(Checkpoint.deleted_at.is_(None))).one()
            self._kept[project_id] = now, {"damaged": row[0], "missing": row[1]}
        return self._kept[project_id][1]


def _counts(session: Session, statement: Select[str | None, int]) -> Counter[str]:
    return Counter({reason or "": number for reason, number in session.execute(statement)})
