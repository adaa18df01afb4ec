"""Jobs of several nodes under real workers that reach each other over loopback addresses."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs import queries, transitions, workers
from jobs.database import Database
from jobs.settings import Settings
from tests.jobs import rows
from tests.waiting import eventually
from tests.worker.conftest import StartWorker
from tests.worker.running import SAVING, SHORT, Jobs, RunningWorker
from worker.nodes import wait_for_nodes
from worker.open_attempt import OpenAttempt

pytestmark = [pytest.mark.timeout(300), pytest.mark.process]

FOUR: dict[str, Any] = SHORT | {"epochs": 5, "monitor_every_epochs": 0}  # it pauses between its steps
TWO = {"nodes": 2, "processes": 2, "batch_size": 712}  # two steps an epoch


def start_node(start_worker: StartWorker, database: Database, number: int) -> RunningWorker:
    """Start a worker with an address of its own; all share a data folder."""
    worker = start_worker(database, WCL_NODE_ADDRESS=f"127.0.0.{number}", WCL_WORKER_NAME=f"w{number}")
    eventually(lambda: worker.row().address, "a worker for jobs of several nodes")
    return worker


def last_file(database: Database, job_id: str) -> tuple[int, str]:
    with database.read() as session:
        newest = max(queries.checkpoints(session, job_id), key=lambda each: each.step)
    return newest.step, newest.sha256


def test_two_nodes_end_with_the_bytes_of_one_machine_also_after_the_loss_of_one(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    """Four ranks on one worker, on two, and on two of which one is killed on the way."""
    first, second = (start_node(start_worker, sqlite_database, number) for number in (2, 3))
    alone, together = jobs.submit(FOUR | TWO | {"nodes": 1, "processes": 4}), jobs.submit(FOUR | TWO)
    for job_id in (alone, together):
        job = jobs.wait_for(job_id, "succeeded", "failed")
        assert (job.status, job.attempt) == ("succeeded", 1), jobs.log(job_id) + first.log() + second.log()

    disturbed = jobs.submit(FOUR | TWO)
    eventually(lambda: jobs.num_checkpoints(disturbed) >= 1, "a checkpoint")
    lost = second.runs() or [psutil.Process(second.pid)]
    listening = [each.laddr.ip for rank in first.runs() + lost for each in _sockets(rank)]
    second.send(signal.SIGKILL)
    second.wait()
    eventually(lambda: jobs.get(disturbed).status == "queued", "the end of the attempt on both")
    eventually(lambda: not any(map(psutil.Process.is_running, lost)), "the end of orphaned ranks")
    start_node(start_worker, sqlite_database, 4)
    job = jobs.wait_for(disturbed, "succeeded", "failed")

    assert (job.status, job.attempt, job.failures) == ("succeeded", 2, 1), jobs.log(disturbed)
    assert set(listening) <= {"127.0.0.2", "127.0.0.3"}
    files = [last_file(sqlite_database, job_id) for job_id in (alone, together, disturbed)]
    assert files[0] == files[1] == files[2]
    (started, _) = (event for event in jobs.events(disturbed) if event.type == "started")
    assert started.data["world_size"] == 4


@pytest.mark.long
def test_a_silent_node_ends_the_attempt_within_a_lease_and_the_job_resumes(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    """A machine that hangs: its worker and its ranks stop, and their connections stay open."""
    first, second = (start_node(start_worker, sqlite_database, number) for number in (2, 3))
    undisturbed = jobs.submit(FOUR | TWO)
    assert jobs.wait_for(undisturbed, "succeeded", "failed").status == "succeeded", jobs.log(undisturbed)
    disturbed = jobs.submit(FOUR | TWO)
    eventually(lambda: jobs.num_checkpoints(disturbed) >= 1, "a checkpoint")
    silent = [psutil.Process(second.pid), *second.runs()]
    for process in silent:
        with suppress(psutil.Error):
            process.suspend()

    eventually(lambda: jobs.get(disturbed).status == "queued", "the end of the attempt on the other node")
    eventually(lambda: not first.runs(), "the end of the ranks of the other node")
    start_node(start_worker, sqlite_database, 4)
    job = jobs.wait_for(disturbed, "succeeded", "failed")
    for process in silent:
        with suppress(psutil.Error):
            process.resume()
    eventually(lambda: not second.runs(), "the end of its ranks once it goes on")

    assert job.status == "succeeded", jobs.log(disturbed)
    assert last_file(sqlite_database, disturbed) == last_file(sqlite_database, undisturbed)
    assert jobs.get(disturbed).status == "succeeded"


def _sockets(process: psutil.Process) -> list[Any]:
    return [each for each in process.net_connections() if each.status == psutil.CONN_LISTEN]


def test_requests_and_failures_of_one_node_act_on_both(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    first, second = (start_node(start_worker, sqlite_database, number) for number in (2, 3))
    job_id = jobs.submit(SAVING | TWO)
    eventually(lambda: jobs.num_checkpoints(job_id) >= 1, f"a checkpoint\n{first.log()}")

    second.runs()[0].kill()
    eventually(lambda: jobs.get(job_id).attempt == 2, "the second attempt")
    requeued = next(event for event in jobs.events(job_id) if event.type == "requeued")
    assert requeued.data["reason"] == "killed"
    assert "node 1" in requeued.data["message"]
    assert "SIGKILL" in requeued.data["message"]

    before = jobs.num_checkpoints(job_id)
    eventually(lambda: jobs.num_checkpoints(job_id) > before, "progress of the second attempt")
    sqlite_database.write(lambda session: transitions.pause(session, job_id))
    assert jobs.wait_for(job_id, "paused").status_message is None, "it stopped by itself and was not killed"
    eventually(lambda: not first.runs() + second.runs(), "the end of all ranks")
    sqlite_database.write(lambda session: transitions.resume(session, job_id))

    eventually(lambda: jobs.get(job_id).attempt == 3 and second.runs(), "the third attempt")
    before = jobs.num_checkpoints(job_id)
    eventually(lambda: jobs.num_checkpoints(job_id) > before, "progress of the third attempt")
    assert second.stop() == 0
    job = jobs.wait_for(job_id, "queued")
    assert (job.status_reason, job.failures) == ("worker_stopped", 1)
    eventually(first.is_idle, "the rest of the other worker")
    rows.submit(sqlite_database)  # the gang lacks a worker, and keeps no other job waiting


def test_workers_for_one_job_that_start_at_once_become_its_nodes(
    sqlite_database: Database, jobs: Jobs, tmp_path: Path
) -> None:
    """As `srun wcl worker --once` starts them; a third one finds no other job, and ends."""
    once = [RunningWorker(sqlite_database, tmp_path / "data", WCL_NODE_ADDRESS=f"127.0.0.{n}") for n in (2, 3, 4)]
    for worker in once:
        worker.options = ("--once",)
    once[0].start().wait()  # it announces its dataset, and ends
    job_id = jobs.submit(SHORT | TWO | {"processes": 1})

    for worker in once[:2]:
        worker.start()
    assert [worker.wait() for worker in once[:2]] == [0, 0], once[0].log() + once[1].log()

    job = jobs.get(job_id)
    assert (job.status, job.attempt) == ("succeeded", 1), jobs.log(job_id) + once[0].log()
    assert once[2].start().wait() == 0
    assert "no waiting job fits" in once[2].log()


def test_a_worker_that_does_not_begin_costs_no_failure(sqlite_database: Database, tmp_path: Path) -> None:
    """It may have died right before the claim, and no reconciler knows it yet."""
    facts = [rows.worker(id=f"00000000-0000-7000-8000-{n:012}", name=f"w{n}", address=f"10.0.0.{n}") for n in (1, 2)]
    rows.add_dataset(sqlite_database)
    for each in facts:
        sqlite_database.write(partial(workers.register, worker=each, pid=1, datasets=[]))
        sqlite_database.write(partial(workers.heartbeat, worker_id=each.id, job_id=None, address=each.address))
    job_id = rows.submit(sqlite_database, spec={"nodes": 2, "batch_size": 240})
    claim, draining = rows.claim(sqlite_database, facts[0]), threading.Event()
    attempt = OpenAttempt(sqlite_database, Settings(data_dir=tmp_path), draining, claim)

    end = wait_for_nodes(attempt, draining, 0.0)
    assert end is not None
    assert (end.reason, "w2 did not begin" in (end.message or "")) == ("node_late", True)
    sqlite_database.write(lambda session: transitions.begin_node(session, facts[1].id, facts[1].all_free))
    assert wait_for_nodes(attempt, draining, 0.0) is None

    attempt.end(end)
    job = rows.job(sqlite_database, job_id)
    assert (job.status, job.status_reason, job.failures) == ("queued", "node_late", 0)
