"""What ends by its age: output, events and points of ended jobs, rows of ended workers."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import select, update

from jobs import audit, curves, expiry, ingest, step_times, workers
from jobs.database import Database, now_ms
from jobs.models import Event, Job, Log, Worker
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


def _age(database: Database, *ids: str) -> None:
    old = update(Job).where(Job.id.in_(ids)).values(ended_at=now_ms() - 31 * DAY_MS)
    database.write(lambda session: session.execute(old))


def test_old_events_go_but_the_end_stays_and_the_audit_is_closed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "AT_ONCE", 1)
    rows.add_dataset(database)
    runs = [Run(database, rows.running(database)) for _ in range(3)]
    for run in runs:
        run.deliver(rows.started(), rows.checkpoint(1))
    for run in runs[:2]:
        run.end("succeeded")
    _age(database, *(run.job_id for run in runs))  # the last one has not ended, whatever its row says
    database.write(lambda s: s.execute(update(Job).where(Job.id == runs[2].job_id).values(ended_at=None)))

    assert expiry.expire_events(database, None, threading.Event()) == 0
    assert expiry.expire_events(database, 30, threading.Event()) == 2
    assert expiry.expire_events(database, 30, threading.Event()) == 0  # nothing is left to do

    assert [[event.type for event in rows.events(database, run.job_id)] for run in runs[:2]] == [["succeeded"]] * 2
    assert rows.events(database, runs[2].job_id)[0].type == "submitted"
    assert audit.audit(database).findings == []
    lost = update(Event).where(Event.job_id == runs[0].job_id).values(data={"status": "failed"})
    database.write(lambda session: session.execute(lost))
    assert [finding.rule for finding in audit.audit(database).findings] == ["status"]


@pytest.mark.parametrize("form", ["blocks", "rows"])
def test_a_long_curve_keeps_its_form_and_a_short_one_all_points(
    database: Database, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    if form == "rows":
        monkeypatch.setattr(ingest, "_MEASURED", "")
    monkeypatch.setattr(expiry, "MOST_POINTS", 80)
    monkeypatch.setattr(curves, "MOST_POINTS", 80)
    monkeypatch.setattr(expiry, "BATCH", 90)  # ends within a bucket
    rows.add_dataset(database)
    run = Run(database, rows.running(database))
    run.deliver(rows.started())
    values = {step: None if step == 77 else float((step * 7_919) % 1_000) for step in range(1, 513)}
    short = {step: {"short": 1.0} if step % 8 == 3 else {} for step in values}
    run.deliver(*(rows.metrics(step, loss=value, **short[step]) for step, value in values.items()))
    run.end("drained")
    second = Run(database, rows.claim(database))
    second.deliver(rows.started(512), *(rows.metrics(step, loss=2_000.0) for step in range(513, 517)))
    second.end("succeeded")
    _age(database, run.job_id)

    def read(**limits: int) -> dict[str, list[curves.CurvePoint]]:
        with database.read() as session:
            return curves.metrics(session, run.job_id, **limits)

    before, short_before, zoomed = read(max_points=10), read()["short"], read(first=200, last=263)
    assert expiry.thin_curves(database, None, threading.Event()) == 0
    assert expiry.thin_curves(database, 30, threading.Event()) == 1
    assert expiry.thin_curves(database, 30, threading.Event()) == 0

    with database.read() as session:
        assert step_times.step_times(session, run.job_id)
    steps = [step for name, step, _, _ in rows.points(database) if name == "loss" and step <= 512]
    # The first, the missing one, and the last of each bucket of 8 steps
    assert steps == [1, *(step for step in values if step % 8 == 7 or step in (77, 512))]
    assert rows.job(database, run.job_id).thinned_at is not None
    assert read(max_points=10) == before
    assert read()["short"] == short_before
    after = read(first=200, last=263)["loss"]
    assert [point.step for point in after] == list(range(207, 264, 8))
    extremes = (min(p.min for p in zoomed["loss"] if p.min is not None), max(p.max or 0 for p in zoomed["loss"]))
    assert (min(p.min or 0 for p in after), max(p.max or 0 for p in after)) == extremes
    assert [point.step for point in read()["loss"] if point.attempt == 2] == [513, 514, 515, 516]
    assert audit.audit(database).findings == []


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
