"""What ends by its age: output of ended jobs, rows of ended workers."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import select, update

from jobs import expiry, workers
from jobs.database import Database, now_ms
from jobs.models import Job, Log, Worker
from tests.jobs import rows
from tests.jobs.rows import Run

DAY_MS = 86_400_000


def test_old_output_of_ended_jobs_is_removed_in_batches(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "AT_ONCE", 1)
    rows.add_dataset(database)
    ids = []
    for outcome in ("succeeded", "failed", "cancelled", None):
        run = Run(database, rows.running(database))
        run.deliver(rows.started(), output=[(1, "a line")])
        if outcome:
            run.end(outcome)
        ids.append(run.job_id)
    old = update(Job).where(Job.id.in_(ids[:2])).values(ended_at=now_ms() - 31 * DAY_MS)
    database.write(lambda session: session.execute(old))

    assert expiry.expire_logs(database, None, threading.Event()) == 0
    assert expiry.expire_logs(database, 30, threading.Event()) == 2

    with database.read() as session:
        assert set(session.execute(select(Log.job_id)).scalars()) == set(ids[2:])


def test_workers_that_ended_long_ago_are_removed(database: Database) -> None:
    ids = [f"00000000-0000-7000-8000-0000000000b{number}" for number in range(3)]
    for worker_id in ids:
        facts = rows.worker(id=worker_id, name=worker_id[-2:])
        database.write(lambda session, facts=facts: workers.register(session, facts, 1, (), None, None, ()))
    for worker_id in ids[:2]:
        database.write(lambda session, worker_id=worker_id: workers.stop(session, worker_id))
    old = update(Worker).where(Worker.id != ids[1]).values(seen_at=now_ms() - 91 * DAY_MS)
    database.write(lambda session: session.execute(old))

    expiry.expire_workers(database, 90)

    with database.read() as session:
        assert set(session.execute(select(Worker.id)).scalars()) == set(ids[1:])  # a live one stays whatever its time
