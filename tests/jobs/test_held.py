"""Jobs that pause for want of a disk or storage: they continue by themselves, and need one checkpoint only."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update

from jobs import checkpoints, transitions, workers
from jobs.database import Database
from jobs.errors import Conflict
from jobs.models import Job, Worker
from jobs.status import HELD
from tests.jobs import rows
from tests.jobs.rows import Run, add_dataset, running


@pytest.fixture(autouse=True)
def dataset(database: Database) -> None:
    add_dataset(database)


def add_worker(database: Database, **changes: object) -> str:
    facts = rows.worker(**changes)
    database.write(lambda session: workers.register(session, facts, 1, []))
    return facts.id


def held(database: Database, reason: str = "disk_full", **fields: object) -> str:
    """A job whose attempt has ended for this reason, and whose backoff is over."""
    run = Run(database, running(database, **fields))
    run.end("failed", reason, "the disk is full")
    rows.make_due(database)
    return run.job_id


def resume(database: Database) -> int:
    with database.read() as session:
        if not session.execute(select(transitions.has_held())).scalar_one():
            return 0
    return database.write(transitions.resume_held)


@pytest.mark.parametrize("reason", sorted(HELD))
def test_a_held_job_is_resumed_once_a_worker_that_fits_takes_jobs(database: Database, reason: str) -> None:
    job_id = held(database, reason)
    assert (rows.status(database, job_id), rows.job(database, job_id).failures) == ("paused", 0)

    assert resume(database) == 0
    other = add_worker(database, id="00000000-0000-7000-8000-0000000000bb", datasets={"flowers": rows.DIGEST})
    assert resume(database) == 0
    worker = add_worker(database)
    database.write(lambda session: workers.drain(session, worker))
    assert resume(database) == 0, "a worker that drains takes no jobs"
    database.write(lambda s: s.execute(update(Worker).where(Worker.id != other).values(drain_requested_at=None)))
    assert resume(database) == 1

    assert rows.status(database, job_id) == "queued"
    assert [event.type for event in rows.events(database, job_id)][-2:] == ["paused", "resumed"]
    assert rows.claim(database).number == 2


def test_a_job_that_a_user_has_paused_stays_paused(database: Database) -> None:
    add_worker(database)
    by_user = rows.job_in(database, rows.Status.PAUSED)
    run = Run(database, running(database))
    database.write(lambda session: transitions.pause(session, run.job_id))
    run.end("failed", "disk_full", "the disk is full")
    rows.make_due(database)

    assert resume(database) == 0

    assert rows.job(database, by_user).status_reason == "user"
    assert (rows.status(database, run.job_id), rows.job(database, run.job_id).status_reason) == ("paused", "user")


def test_each_full_disk_makes_the_job_wait_longer(database: Database) -> None:
    add_worker(database)
    job_id = held(database)
    waits = []
    for _ in range(4):
        assert resume(database) == 1
        Run(database, rows.claim(database)).end("failed", "disk_full")
        with database.read() as session:
            job = session.get_one(Job, job_id)
            assert job.not_before is not None
            waits.append(job.not_before - job.updated_at)  # not since now: a busy machine takes its time until here
        assert resume(database) == 0, "its backoff is not over"
        rows.make_due(database)

    assert waits == sorted(waits)
    assert waits[0] > 3_000
    assert waits[-1] < 65_000


def test_two_reconcilers_resume_a_job_once(database: Database) -> None:
    add_worker(database)
    job_id = held(database)

    assert sum(rows.at_once(2, lambda number: database.write(transitions.resume_held))) == 1

    assert [event.type for event in rows.events(database, job_id)].count("resumed") == 1


def test_a_job_needs_its_newest_checkpoint_and_the_one_before_it_unless_it_is_paused(database: Database) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), *(rows.checkpoint(step) for step in (1, 2, 3)))
    ids = [row.id for row in rows.checkpoints(database, run.job_id)]

    def delete(checkpoint_id: str) -> None:
        database.write(lambda session: checkpoints.delete(session, checkpoint_id) and None)

    for needed in ids[1:]:
        with pytest.raises(Conflict, match="needs the checkpoint"):
            delete(needed)
    with database.read() as session:
        assert [row.id for row in checkpoints.spare(session, [run.job_id])] == [ids[0]], "it runs"
    delete(ids[0])

    run.end("failed", "disk_full")
    with pytest.raises(Conflict, match="needs the checkpoint"):
        delete(ids[2])
    delete(ids[1])

    rows.make_due(database)
    add_worker(database)
    resume(database)
    with pytest.raises(Conflict, match="needs the checkpoint"):
        delete(ids[2])
    assert (point := rows.claim(database).resume) is not None
    assert point.step == 3


def test_an_evaluation_needs_an_older_checkpoint_of_a_paused_job(database: Database) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), *(rows.checkpoint(step) for step in (1, 2)))
    run.end("failed", "disk_full")
    first = rows.checkpoints(database, run.job_id)[0].id
    rows.submit(database, "evaluate", {"features": {"kind": "checkpoint", "checkpoint_id": first}})

    with pytest.raises(Conflict, match="needs the checkpoint"):
        database.write(lambda session: checkpoints.delete(session, first) and None)
