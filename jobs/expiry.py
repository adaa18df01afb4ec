"""What ends by its age: output of ended jobs and rows of ended workers, some in a transaction."""

from __future__ import annotations

import threading

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jobs.database import Database, now_ms
from jobs.models import Job, Log, Worker

_DAY_MS = 86_400_000
AT_ONCE = 20  # jobs, or hundreds of workers, of one transaction


def expire_logs(database: Database, days: float | None, stop: threading.Event) -> int:
    """Delete the log lines of jobs that ended so many days ago, until `stop`; return the number of these jobs.

    None keeps them as long as their jobs.
    """
    count = 0
    while days is not None and not stop.is_set():

        def expire(session: Session, days: float = days) -> int:
            is_old = Job.ended_at < now_ms() - int(days * _DAY_MS)
            old = select(Log.job_id).join(Job, Job.id == Log.job_id).where(is_old).distinct().limit(AT_ONCE)
            ids = session.execute(old).scalars().all()
            if ids:
                session.execute(delete(Log).where(Log.job_id.in_(ids)))
            return len(ids)

        removed = database.write(expire)
        count += removed
        if removed < AT_ONCE:
            break
    return count


def expire_workers(database: Database, days: float) -> None:
    """Delete the rows of workers that ended so many days ago; attempts keep the names of theirs."""
    is_old = Worker.seen_at < now_ms() - int(days * _DAY_MS)
    ended = select(Worker.id).where(~Worker.is_live, is_old).limit(100 * AT_ONCE)
    database.write(lambda session: session.execute(delete(Worker).where(Worker.id.in_(ended))))
