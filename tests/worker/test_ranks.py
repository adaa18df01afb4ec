"""Several ranks under a real worker: to the end, after a request to stop, after the kill of one, as orphans."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from jobs import transitions
from jobs.database import Database
from tests.jobs.rows import open_attempt
from tests.waiting import eventually
from tests.worker.conftest import StartWorker
from tests.worker.running import SAVING, SHORT, Jobs, RunningWorker
from wcl_core.protocol import PEER_LOST_EXIT, Failure, failure_file, lost_peer_file
from worker.attempt_folder import mark_of, place_of
from worker.exit_reason import exit_reason, read_failure
from worker.process import _worst, marked

pytestmark = pytest.mark.timeout(300)

TWO = {"processes": 2}


def ranks(worker: RunningWorker) -> list[psutil.Process]:
    """Return the training processes of a worker, the first rank first."""
    return sorted(worker.runs(), key=lambda process: process.environ()["RANK"])


def start_endless(worker: RunningWorker, jobs: Jobs) -> str:
    job_id = jobs.submit(SAVING | TWO)
    eventually(lambda: jobs.num_checkpoints(job_id) >= 1, f"a checkpoint\n{worker.log()}")
    return job_id


def test_a_job_of_two_ranks_succeeds(sqlite_database: Database, jobs: Jobs, start_worker: StartWorker) -> None:
    worker = start_worker(sqlite_database)
    job_id = jobs.submit(SHORT | TWO)

    job = jobs.wait_for(job_id, "succeeded", "failed")

    assert (job.status, job.failures) == ("succeeded", 0), jobs.log(job_id)
    assert jobs.num_checkpoints(job_id) == 2
    (started,) = (event for event in jobs.events(job_id) if event.type == "started")
    assert started.data["world_size"] == 2
    eventually(worker.is_idle, "the worker's rest")
    assert list((worker.folder / "attempts").iterdir()) == []


def test_a_killed_rank_ends_the_attempt_and_a_cancel_all_ranks(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    worker = start_worker(sqlite_database)
    job_id = start_endless(worker, jobs)
    first = ranks(worker)
    assert len(first) == 2

    first[1].send_signal(signal.SIGKILL)

    eventually(lambda: jobs.get(job_id).attempt == 2, "the second attempt")
    assert jobs.get(job_id).failures == 1
    requeued = next(event for event in jobs.events(job_id) if event.type == "requeued")
    assert (requeued.data["reason"], "SIGKILL" in requeued.data["message"]) == ("killed", True)
    assert not any(process.is_running() for process in first)

    before = jobs.num_checkpoints(job_id)
    eventually(lambda: jobs.num_checkpoints(job_id) > before, "progress of the second attempt")
    second = ranks(worker)
    sqlite_database.write(lambda session: transitions.cancel(session, job_id))
    assert jobs.wait_for(job_id, "cancelled").status_message is None, "it stopped by itself and was not killed"
    eventually(lambda: not any(process.is_running() for process in second), "the end of every rank")


def test_all_ranks_end_with_their_worker(sqlite_database: Database, jobs: Jobs, start_worker: StartWorker) -> None:
    worker = start_worker(sqlite_database)
    job_id = start_endless(worker, jobs)
    attempt = open_attempt(sqlite_database, job_id)
    mark = mark_of(attempt, place_of(worker.folder / "attempts" / attempt.folder))
    assert len(list(marked(mark))) == 2

    worker.stop(signal.SIGKILL)

    eventually(lambda: list(marked(mark)) == [], "the end of every rank")


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ([None, 0], None),
        ([0, PEER_LOST_EXIT], PEER_LOST_EXIT),
        ([PEER_LOST_EXIT, 1], 1),
        ([1, -9, PEER_LOST_EXIT], -9),
    ],
)
def test_the_exit_code_that_explains_most_counts(codes: list[int | None], worst: int | None) -> None:
    assert _worst(codes) == worst


def test_the_failure_of_another_rank_than_the_first_is_read(tmp_path: Path) -> None:
    assert read_failure(tmp_path) is None
    failure = Failure(outcome="failed", reason="out_of_memory", message="CUDA out of memory")
    (tmp_path / failure_file(3)).write_text(failure.model_dump_json())

    assert read_failure(tmp_path) == ("failed", "out_of_memory", "rank 3: CUDA out of memory")


def test_ranks_that_all_lost_the_others_name_a_fault_of_nccl(tmp_path: Path) -> None:
    assert exit_reason(PEER_LOST_EXIT, tmp_path, None).reason == "killed"
    for rank, reason in enumerate(("killed", "device_error", "killed")):
        failure = Failure(outcome="failed", reason=reason, message=f"NCCL {rank}")
        (tmp_path / lost_peer_file(rank)).write_text(failure.model_dump_json())

    assert exit_reason(PEER_LOST_EXIT, tmp_path, None) == ("failed", "device_error", "rank 1: NCCL 1")
