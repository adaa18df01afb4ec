"""Slow storage: while a file operation hangs, the attempt is renewed, requests are received, and a worker can stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs import queries, transitions
from jobs.models import Attempt
from tests.chaos.processes import Node
from tests.chaos.stage import Stage, Theatre, arm, spec
from tests.waiting import eventually

_ENDLESS = 100_000  # epochs
_REQUEST = {"cancel": transitions.cancel, "pause": transitions.pause}
_ENDS_AS = {"cancel": "cancelled", "pause": "paused"}
# Where a worker reads or writes files: the checkpoint of the run, and one that the run has written.
_BEGINNING, _STORING = "supervisor.run_file", "storage.before_rename"
_PATIENT = {"WCL_LEASE_SECONDS": "60"}  # no attempt is declared lost here, however busy the machine is


@contextmanager
def held_up(house: Theatre, name: str, place: str, **settings: str) -> Iterator[tuple[Stage, Node, str, Path]]:
    """Start a job whose worker waits for a file, for up to five minutes."""
    with house.stage(f"files-{name}", "sqlite", **settings) as stage:
        worker = stage.worker("worker")
        failpoints = stage.failpoints(worker)
        arm(failpoints, f"{place} hang 300")
        worker.start()
        stage.wait_for_workers("worker")
        job_id = stage.submit(spec(1, _ENDLESS, 30))
        eventually((failpoints / "fired").exists, "the file")
        yield stage, worker, job_id, failpoints / "release"


def renewals(stage: Stage, job_id: str) -> int:
    with stage.database.read() as session:
        return session.get_one(Attempt, (job_id, 1)).renewals


def num_checkpoints(stage: Stage, job_id: str) -> int:
    with stage.database.read() as session:
        return len(queries.checkpoints(session, job_id))


@pytest.mark.parametrize("place", [_BEGINNING, _STORING], ids=["beginning", "storing"])
def test_an_attempt_is_renewed_while_a_file_is_held_up(house: Theatre, place: str) -> None:
    with held_up(house, f"renewed-{place}".replace(".", "-"), place) as (stage, _, job_id, release):
        before = renewals(stage, job_id)
        eventually(lambda: renewals(stage, job_id) >= before + 3, "renewals")
        release.touch()
        eventually(lambda: num_checkpoints(stage, job_id), "a checkpoint")
        assert (stage.job(job_id).attempt, stage.job(job_id).failures) == (1, 0)


@pytest.mark.parametrize("verb", ["cancel", pytest.param("pause", marks=pytest.mark.long)])
def test_a_run_receives_requests_while_its_checkpoint_is_stored(house: Theatre, verb: str) -> None:
    """The run ends at once; the job ends once all files of the run are stored."""
    with held_up(house, verb, _STORING, **_PATIENT) as (stage, worker, job_id, release):
        assert worker.trainings()
        stage.database.write(lambda session: _REQUEST[verb](session, job_id))
        eventually(lambda: not worker.trainings(), "the end of the run")
        assert (stage.job(job_id).status, num_checkpoints(stage, job_id)) == ("running", 0)

        release.touch()
        job = stage.wait_for(job_id, _ENDS_AS[verb])
        assert (job.attempt, job.failures) == (1, 0)
        assert num_checkpoints(stage, job_id) >= 1


def test_a_job_that_is_cancelled_before_its_run_began_ends_at_once(house: Theatre) -> None:
    with held_up(house, "early-cancel", _BEGINNING, **_PATIENT) as (stage, _, job_id, _):
        stage.database.write(lambda session: transitions.cancel(session, job_id))
        stage.wait_for(job_id, "cancelled")
        after = stage.submit(spec(2))
        stage.wait_for(after, "succeeded")  # the slot is free


@pytest.mark.parametrize("place", [_BEGINNING, _STORING], ids=["beginning", "storing"])
def test_a_drain_does_not_wait_for_a_file_that_takes_for_ever(house: Theatre, place: str) -> None:
    with held_up(house, f"drain-{place}".replace(".", "-"), place, **_PATIENT) as (stage, worker, job_id, _):
        worker.end(signal.SIGTERM, seconds=120)  # the file would take longer

        job = stage.job(job_id)
        assert (job.status, job.status_reason, job.failures) == ("queued", "worker_stopped", 0)
        assert num_checkpoints(stage, job_id) == 0
        assert list((Path(worker.start_as.environment["WCL_DATA_DIR"]) / "attempts").iterdir()) == []


@pytest.mark.long
def test_a_storage_that_never_answers_pauses_the_job_and_frees_the_worker(house: Theatre) -> None:
    with held_up(house, "silent", _STORING, WCL_STALL_SECONDS="6", **_PATIENT) as (stage, _, job_id, _):
        job = stage.wait_for(job_id, "paused", "failed")
        assert (job.status, job.status_reason, job.failures) == ("paused", "storage_unavailable", 0)
        after = stage.submit(spec(2))
        stage.wait_for(after, "succeeded")
