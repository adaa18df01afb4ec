"""Redis only carries wake-ups: without it jobs are accepted and run, and its loss does not disturb a run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.clients import Caller
from tests.chaos.ledger import Accepted, Ledger
from tests.chaos.processes import Node
from tests.chaos.stage import Stage, Theatre, spec
from tests.waiting import eventually

_SUCCEEDED = frozenset({"succeeded"})


@contextmanager
def caller_of(server: Node, key_of: Node | None = None) -> Iterator[Caller]:
    """Yield a client of a started server, with its own key or that of another server on its database."""
    environment = server.start_as.environment
    eventually((_data_dir(server) / "server.json").exists, "the start of the server")
    caller = Caller(
        [f"http://127.0.0.1:{environment['WCL_PORT']}"], _data_dir(key_of or server) / "key", threading.Event()
    )
    yield caller
    caller.close()


def _data_dir(server: Node) -> Path:
    return Path(server.start_as.environment["WCL_DATA_DIR"])


def assert_undisturbed(stage: Stage, *jobs: Accepted) -> None:
    """Check that each job succeeded at its first attempt, with a complete curve."""
    for job in jobs:
        row = stage.wait_for_end(job.job_id)
        assert (row.status, row.attempt, row.failures) == ("succeeded", 1, 0)
    assert Ledger(stage.database, stage.checkpoints_dir).problems(jobs) == []


def test_without_a_broker_a_job_is_accepted_and_its_worker_finds_it(house: Theatre) -> None:
    with house.stage("no-broker") as stage:
        url, broker = stage.proxied(stage.settings["WCL_BROKER_URL"])
        broker.cut()  # before any process starts, and for the whole test
        without = {"WCL_BROKER_URL": url}
        stage.worker("worker", settings=without).start()
        with caller_of(stage.server("server", settings=without).start()) as caller:
            stage.wait_for_workers("worker")
            job_id = caller.submit(spec(1), "alone")

            assert job_id
            assert caller.num_retries == 0, "the first answer was no 201"
            assert_undisturbed(stage, Accepted(job_id, 1, 2, _SUCCEEDED, "alone"))


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
def test_a_submission_starts_its_job_without_a_poll(house: Theatre, kind: str) -> None:
    """With SQLite the worker notices the commit, otherwise the server sends a wake-up."""
    never = {"WCL_LOOK_SECONDS": "1000", "WCL_CLAIM_SECONDS": "1000"}
    with house.stage(f"at-once-{kind}", kind, **never) as stage, caller_of(stage.server("server").start()) as caller:
        stage.worker("worker").start()
        stage.wait_for_workers("worker")
        for number in (1, 2):
            job_id = caller.submit(spec(number), str(number))
            assert job_id
            stage.wait_for(job_id, "succeeded")


def test_a_broker_that_is_killed_under_a_run_costs_it_nothing(house: Theatre) -> None:
    """Jobs that are submitted without the broker also run, on the same worker, and so do jobs after its return."""
    with house.stage("broker-killed") as stage, caller_of(stage.server("server").start()) as caller:
        worker = stage.worker("worker").start()
        stage.wait_for_workers("worker")
        under = caller.submit(spec(1, epochs=15, step_ms=100), "under")
        assert under
        eventually(lambda: next(iter(worker.trainings()), None), "the run")
        assert stage.redis
        stage.redis.end(signal.SIGKILL)
        try:
            meanwhile = caller.submit(spec(2), "meanwhile")
            assert meanwhile
            stage.wait_for(meanwhile, "succeeded")
        finally:
            stage.redis.start()
        after = caller.submit(spec(3), "after")
        assert after

        jobs = [(under, 1, 15, "under"), (meanwhile, 2, 2, "meanwhile"), (after, 3, 2, "after")]
        assert_undisturbed(stage, *(Accepted(job, seed, epochs, _SUCCEEDED, key) for job, seed, epochs, key in jobs))
        assert worker.is_alive()
        assert worker.starts == 1
