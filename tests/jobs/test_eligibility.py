"""Which worker can run which job, when a job is due, and when its dependencies are met or lost."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update

from jobs import eligibility, transitions, workers
from jobs.database import Database, now_ms
from jobs.errors import Invalid
from jobs.models import Checkpoint, Job, Worker
from jobs.status import Status
from tests.jobs import rows
from tests.jobs.rows import Run, claim, job, running, status, submit, worker


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


FLAWS: dict[str, dict[str, Any]] = {
    "none": {},
    "pool": {"pool": "other"},
    "gpus": {"gpus": 1},
    "dataset": {"dataset_name": "cifar10"},
    "digest": {"dataset_digest": "e" * 64},
    "spec version": {"spec_version": 3},
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_the_query_and_the_function_agree_on_which_worker_fits(database: Database, flaw: str) -> None:
    facts = worker(pool="default", gpus=0)
    database.write(lambda session: workers.register(session, facts, 1, []))
    job_id = submit(database)
    database.write(
        lambda session: session.execute(update(Job).where(Job.id == job_id).values({"pool": "default"} | FLAWS[flaw]))
    )

    with database.read() as session:
        by_query = session.execute(select(Job.id).where(eligibility.fits_worker(facts))).scalars().all() == [job_id]
        by_function = eligibility.fits(session.get_one(Worker, facts.id), session.get_one(Job, job_id))
    assert by_query is by_function is (flaw == "none")


@pytest.mark.parametrize(
    ("before", "not_before", "is_due"),
    [
        (Status.QUEUED, None, True),
        (Status.QUEUED, -1_000, True),
        (Status.QUEUED, 60_000, False),
        (Status.PAUSED, None, False),
        (Status.BLOCKED, None, False),
        (Status.RUNNING, None, False),
    ],
)
def test_a_queued_job_is_due_once_its_backoff_is_over(
    database: Database, before: Status, not_before: int | None, is_due: bool
) -> None:
    job_id = rows.job_in(database, before)
    until = None if not_before is None else now_ms() + not_before
    database.write(lambda session: session.execute(update(Job).where(Job.id == job_id).values(not_before=until)))

    with database.read() as session:
        due = session.execute(select(Job.id).where(eligibility.is_due())).scalars().all()
    assert (job_id in due) is is_due


@pytest.mark.parametrize(("changed", "is_due"), [(-1_000, False), (86_400_000, True)])
def test_a_backoff_is_over_when_the_clock_has_gone_back(database: Database, changed: int, is_due: bool) -> None:
    """The job was queued again while the clock was a day ahead, for a backoff of a few seconds."""
    job_id = rows.job_in(database, Status.QUEUED)
    values = {"updated_at": now_ms() + changed, "not_before": now_ms() + changed + 4_000}
    database.write(lambda session: session.execute(update(Job).where(Job.id == job_id).values(values)))

    with database.read() as session:
        due = session.execute(select(Job.id).where(eligibility.is_due())).scalars().all()
    assert (job_id in due) is is_due


@pytest.mark.parametrize(("state", "is_live"), [("idle", True), ("busy", True), ("stopped", False), ("lost", False)])
@pytest.mark.parametrize("drains", [False, True])
def test_a_live_worker_takes_jobs_unless_it_drains(database: Database, state: str, is_live: bool, drains: bool) -> None:
    facts = worker()
    database.write(lambda session: workers.register(session, facts, 1, []))
    values = {"state": state, "drain_requested_at": 1 if drains else None}
    database.write(lambda session: session.execute(update(Worker).values(values)))

    with database.read() as session:
        live = session.execute(select(Worker).where(Worker.is_live)).scalars().all()
        taking = session.execute(select(Worker.id).where(eligibility.takes_jobs())).scalars().all()
        row = session.get_one(Worker, facts.id)
        assert row.is_live is is_live
    assert eligibility.may_take_jobs(row) is (taking == [facts.id])
    assert [row.id for row in live] == ([facts.id] if is_live else [])
    assert taking == ([facts.id] if is_live and not drains else [])


def test_an_unable_worker_takes_no_jobs(database: Database) -> None:
    facts = worker()
    unable = workers.Unable("storage_unavailable", "its folder is not mounted")
    database.write(lambda session: workers.register(session, facts, 1, [], unable=unable))

    def taking() -> list[str]:
        with database.read() as session:
            ids = list(session.execute(select(Worker.id).where(eligibility.takes_jobs())).scalars())
            assert eligibility.may_take_jobs(session.get_one(Worker, facts.id)) is bool(ids)
            return ids

    assert taking() == []
    database.write(lambda session: workers.heartbeat(session, facts.id, None, None))
    assert taking() == [facts.id]
    database.write(lambda session: workers.heartbeat(session, facts.id, None, unable))
    assert taking() == []


def behind(database: Database, *needed: str, checkpoint: bool) -> str:
    return submit(database, after=needed, after_checkpoint=frozenset(needed if checkpoint else ()))


def unblock(database: Database) -> int:
    return database.write(transitions.unblock)


def test_a_checkpoint_unblocks_only_jobs_that_wait_for_one(database: Database) -> None:
    run = Run(database, running(database))
    for_success, for_checkpoint = (behind(database, run.job_id, checkpoint=only) for only in (False, True))
    assert unblock(database) == 0

    run.deliver(rows.started(), rows.checkpoint(1))

    assert unblock(database) == 1
    assert (status(database, for_success), status(database, for_checkpoint)) == ("blocked", "queued")
    run.deliver(rows.end("succeeded"))
    assert unblock(database) == 1
    assert status(database, for_success) == "queued"


@pytest.mark.parametrize("end", ["failed", "cancelled"])
@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_failed_or_cancelled_job_fails_jobs_that_still_depend_on_it(
    database: Database, end: str, saved: bool, checkpoint: bool
) -> None:
    run = Run(database, running(database))
    job_id = behind(database, run.job_id, checkpoint=checkpoint)
    lines = [rows.checkpoint(1)] if saved else []
    run.deliver(rows.started(), *lines, rows.end(end, "bad_data" if end == "failed" else None))

    assert unblock(database) == 1

    result = job(database, job_id)
    expected = ("queued", None) if saved and checkpoint else ("failed", "upstream_failed")
    assert (result.status, result.status_reason) == expected


def test_a_success_without_a_checkpoint_is_enough(database: Database) -> None:
    run = Run(database, running(database))
    job_id = behind(database, run.job_id, checkpoint=True)

    run.end("succeeded")
    unblock(database)

    assert status(database, job_id) == Status.QUEUED


def test_all_needs_have_to_be_met(database: Database) -> None:
    first, second = (submit(database) for _ in range(2))
    job_id = submit(database, after=(first, second), after_checkpoint=frozenset({first}))
    run = Run(database, claim(database))
    assert run.job_id == first
    run.deliver(rows.started(), rows.checkpoint(1))
    assert unblock(database) == 0

    Run(database, claim(database)).end("succeeded")

    assert unblock(database) == 1
    assert status(database, job_id) == Status.QUEUED


def test_a_failure_after_the_checkpoint_does_not_fail_the_dependent_job(database: Database) -> None:
    run = Run(database, running(database))
    other = submit(database)
    job_id = submit(database, after=(run.job_id, other), after_checkpoint=frozenset({run.job_id}))
    run.deliver(rows.started(), rows.checkpoint(1), rows.end("failed", "bad_data"))

    assert unblock(database) == 0
    assert status(database, job_id) == Status.BLOCKED


def test_a_dependency_that_is_already_met_does_not_block(database: Database) -> None:
    run = Run(database, running(database))
    assert status(database, behind(database, run.job_id, checkpoint=True)) == Status.BLOCKED
    run.deliver(rows.started(), rows.checkpoint(1))

    assert status(database, behind(database, run.job_id, checkpoint=True)) == Status.QUEUED
    run.deliver(rows.end("failed", "bad_data"))
    assert status(database, behind(database, run.job_id, checkpoint=True)) == Status.QUEUED
    with pytest.raises(Invalid, match="/after/0: .* has failed and will never succeed"):
        behind(database, run.job_id, checkpoint=False)


def test_a_dependency_on_a_checkpoint_that_cannot_come_is_refused(database: Database) -> None:
    run = Run(database, running(database))
    run.end("failed", "bad_data")

    with pytest.raises(Invalid, match="/after/0: .* has failed without a checkpoint"):
        behind(database, run.job_id, checkpoint=True)


def test_a_damaged_checkpoint_meets_no_dependency(database: Database) -> None:
    run = Run(database, running(database))
    job_id = behind(database, run.job_id, checkpoint=True)
    run.deliver(rows.started(), rows.checkpoint(1))
    database.write(lambda session: session.execute(update(Checkpoint).values(damaged_at=1)))
    assert unblock(database) == 0

    run.deliver(rows.checkpoint(2))
    assert unblock(database) == 1
    assert status(database, job_id) == Status.QUEUED


def test_a_failure_propagates_along_a_chain(database: Database) -> None:
    run = Run(database, running(database))
    second = behind(database, run.job_id, checkpoint=False)
    third = behind(database, second, checkpoint=False)
    run.end("failed", "bad_data")

    while unblock(database):
        pass

    assert [status(database, job_id) for job_id in (second, third)] == ["failed", "failed"]
