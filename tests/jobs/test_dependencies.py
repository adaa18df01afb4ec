"""Jobs that wait for others: for a success or only for a checkpoint, and what becomes of them when it never comes."""

from __future__ import annotations

import pytest

from jobs import transitions
from jobs.database import Database
from jobs.errors import Invalid
from jobs.status import Status
from tests.jobs import rows
from tests.jobs.rows import Run, claim, job, running, status, submit


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def behind(database: Database, *needed: str, checkpoint: bool) -> str:
    return submit(database, after=needed, after_checkpoint=frozenset(needed if checkpoint else ()))


def unblock(database: Database) -> int:
    return database.write(transitions.unblock)


def test_a_checkpoint_moves_on_who_waits_for_one_and_nobody_else(database: Database) -> None:
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
def test_an_upstream_that_ends_otherwise_fails_who_still_waits(
    database: Database, end: str, saved: bool, checkpoint: bool
) -> None:
    run = Run(database, running(database))
    job_id = behind(database, run.job_id, checkpoint=checkpoint)
    lines = [rows.checkpoint(1)] if saved else []
    run.deliver(rows.started(), *lines, rows.end(end, "bad_data" if end == "failed" else None))

    assert unblock(database) == 1

    found = job(database, job_id)
    expected = ("queued", None) if saved and checkpoint else ("failed", "upstream_failed")
    assert (found.status, found.status_reason) == expected


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


def test_a_failure_after_the_checkpoint_is_no_loss_while_another_need_is_open(database: Database) -> None:
    run = Run(database, running(database))
    other = submit(database)
    job_id = submit(database, after=(run.job_id, other), after_checkpoint=frozenset({run.job_id}))
    run.deliver(rows.started(), rows.checkpoint(1), rows.end("failed", "bad_data"))

    assert unblock(database) == 0
    assert status(database, job_id) == Status.BLOCKED


def test_what_is_there_already_is_not_waited_for(database: Database) -> None:
    run = Run(database, running(database))
    assert status(database, behind(database, run.job_id, checkpoint=True)) == Status.BLOCKED
    run.deliver(rows.started(), rows.checkpoint(1))

    assert status(database, behind(database, run.job_id, checkpoint=True)) == Status.QUEUED
    run.deliver(rows.end("failed", "bad_data"))
    assert status(database, behind(database, run.job_id, checkpoint=True)) == Status.QUEUED
    with pytest.raises(Invalid, match="/after/0: .* has failed and will never succeed"):
        behind(database, run.job_id, checkpoint=False)


def test_a_checkpoint_that_will_never_come_is_refused(database: Database) -> None:
    run = Run(database, running(database))
    run.end("failed", "bad_data")

    with pytest.raises(Invalid, match="/after/0: .* has failed without a checkpoint"):
        behind(database, run.job_id, checkpoint=True)


def test_a_failure_runs_down_a_chain(database: Database) -> None:
    run = Run(database, running(database))
    second = behind(database, run.job_id, checkpoint=False)
    third = behind(database, second, checkpoint=False)
    run.end("failed", "bad_data")

    while unblock(database):
        pass

    assert [status(database, job_id) for job_id in (second, third)] == ["failed", "failed"]
