"""Limits of a job: the backoff between its attempts, and its running time."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update

from jobs import transitions
from jobs.database import Database, now_ms
from jobs.models import Attempt
from jobs.status import INFRASTRUCTURE, Status
from jobs.transitions import outcomes
from tests.jobs import rows
from tests.jobs.rows import Run, claim, job, running, status, submit, try_claim


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def now(database: Database) -> int:
    with database.read() as session:
        return session.execute(select(now_ms())).scalar_one()


# --- pauses between attempts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", sorted(INFRASTRUCTURE))
def test_an_infrastructure_failure_is_retried_after_a_backoff(database: Database, reason: str) -> None:
    run = Run(database, running(database))
    before = now(database)

    run.end("failed", reason)

    not_before = job(database, run.job_id).not_before
    assert not_before is not None
    assert before + 2_000 <= not_before <= now(database) + 4_000
    assert try_claim(database) is None
    rows.make_due(database)
    assert claim(database).number == 2


def test_the_backoff_doubles_with_jitter_up_to_a_cap() -> None:
    for failures, longest in ((1, 4), (2, 8), (3, 16), (8, 512), (9, 600), (10_000, 600)):
        waits = [outcomes.wait_ms(failures) for _ in range(200)]
        assert longest * 500 <= min(waits) < max(waits) <= longest * 1000
        assert len(set(waits)) > 100


@pytest.mark.parametrize("outcome", ["drained", "paused"])
def test_a_stop_without_a_failure_has_no_backoff(database: Database, outcome: str) -> None:
    run = Run(database, running(database))
    run.end(outcome)

    assert job(database, run.job_id).not_before is None


def test_resuming_a_job_ends_its_backoff(database: Database) -> None:
    run = Run(database, running(database))
    run.end("failed", "killed")
    database.write(lambda session: transitions.pause(session, run.job_id))
    database.write(lambda session: transitions.resume(session, run.job_id))

    assert claim(database).job_id == run.job_id


def test_a_claim_clears_the_backoff(database: Database) -> None:
    run = Run(database, running(database))
    run.end("failed", "killed")
    rows.make_due(database)

    Run(database, claim(database)).end("drained")

    assert job(database, run.job_id).not_before is None


@pytest.mark.parametrize("reason", ["bad_data", "non_finite_loss", "collapse", "out_of_memory", "internal_error"])
def test_a_failure_of_the_job_itself_is_not_retried(database: Database, reason: str) -> None:
    run = Run(database, running(database))

    run.end("failed", reason)

    assert (status(database, run.job_id), job(database, run.job_id).failures) == (Status.FAILED, 0)


# --- running time --------------------------------------------------------------------------------------------------


def test_a_run_at_its_time_limit_saves_a_checkpoint_and_ends(database: Database) -> None:
    run = Run(database, running(database, max_seconds=100))
    run.ran_ms += 90_000
    requests = run.deliver(rows.started())
    assert not requests.timeout
    assert (requests.seconds_left, type(requests.seconds_left)) == (10, float)  # a worker adds it to a clock
    run.ran_ms += 10_000
    assert run.deliver(rows.metrics(1, loss=1.0)).timeout

    run.deliver(rows.checkpoint(1), rows.end("drained"))

    result = job(database, run.job_id)
    assert (result.status, result.status_reason, result.failures) == ("failed", "timeout", 0)
    assert "100 s" in (result.status_message or "")
    assert [event.type for event in rows.events(database, run.job_id)][-2:] == ["checkpoint", "failed"]


def test_the_time_limit_counts_running_time_only(database: Database) -> None:
    run = Run(database, running(database, max_seconds=100))
    run.ran_ms += 60_000
    run.end("drained")
    both = update(Attempt).values(started_at=Attempt.started_at - 10**9, ended_at=Attempt.ended_at - 10**9)
    database.write(lambda session: session.execute(both))
    again = Run(database, claim(database))
    assert not again.send([]).timeout

    again.ran_ms += 40_000

    assert again.send([]).timeout


def test_the_time_limit_counts_the_time_of_the_workers_clock(database: Database) -> None:
    """The stored times of an attempt may be days apart because a clock stepped."""
    run = Run(database, running(database, max_seconds=100))
    began = update(Attempt).values(started_at=Attempt.started_at - 10**9)
    database.write(lambda session: session.execute(began))

    run.ran_ms += 99_000
    assert not run.send([]).timeout
    run.ran_ms += 1_000
    assert run.send([]).timeout


def test_the_time_limit_of_an_older_workers_attempt_counts_its_times(database: Database) -> None:
    run = Run(database, running(database, max_seconds=100))
    older = update(Attempt).values(started_at=Attempt.started_at - 100_000, ran_ms=None)
    database.write(lambda session: session.execute(older))

    assert database.write(lambda session: transitions.deliver(session, run.attempt, [])).timeout


@pytest.mark.parametrize(
    ("outcome", "reason", "after"),
    [
        ("succeeded", None, "succeeded"),
        ("cancelled", None, "cancelled"),
        ("failed", "bad_data", "failed"),
        ("failed", "killed", "timeout"),
        ("paused", None, "timeout"),
        ("drained", None, "timeout"),
    ],
)
def test_a_job_at_its_time_limit_is_not_requeued(
    database: Database, outcome: str, reason: str | None, after: str
) -> None:
    run = Run(database, running(database, max_seconds=1))
    run.ran_ms += 1_000

    run.end(outcome, reason)

    result = job(database, run.job_id)
    assert (result.status_reason == "timeout") == (after == "timeout")
    assert result.status == ("failed" if after == "timeout" else after)


def test_a_cancel_wins_over_the_time_limit(database: Database) -> None:
    run = Run(database, running(database, max_seconds=1))
    run.ran_ms += 1_000
    database.write(lambda session: transitions.cancel(session, run.job_id))

    run.end("drained")

    assert status(database, run.job_id) == Status.CANCELLED


def test_without_max_seconds_there_is_no_timeout(database: Database) -> None:
    run = Run(database, claim(database)) if submit(database) else None
    assert run is not None
    run.ran_ms += 1000 * 10**9

    assert not run.send([]).timeout
    run.end("drained")
    assert status(database, run.job_id) == Status.QUEUED
