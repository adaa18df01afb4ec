"""Real workers in an orderly end: drains, preemption, time limits, one job for a batch system."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from sqlalchemy import update

from jobs import queries, transitions, workers
from jobs.__main__ import main
from jobs.audit import audit
from jobs.database import Database
from jobs.models import Job, Worker
from tests.photographs import photographs
from tests.processes import ROOT
from tests.waiting import eventually
from tests.worker.conftest import StartWorker
from tests.worker.running import ENDLESS, SHORT, Jobs, RunningWorker

pytestmark = [pytest.mark.timeout(300), pytest.mark.process]

PATIENT = {"WCL_LEASE_SECONDS": "60"}  # no worker is declared lost here, also on a busy machine


def row_of(worker: RunningWorker) -> Worker:
    with worker.database.read() as session:
        return next(row for row in queries.workers(session) if row.pid == worker.pid)


def start_endless(worker: RunningWorker, jobs: Jobs, preemptible: bool = False, max_seconds: int | None = None) -> str:
    """Start a job that does not end by itself; wait for its first registered checkpoint."""
    job_id = jobs.submit(ENDLESS, preemptible=preemptible, max_seconds=max_seconds)
    eventually(lambda: jobs.num_checkpoints(job_id) >= 1, f"a checkpoint\n{worker.log()}")
    return job_id


def assert_queued(jobs: Jobs, job_id: str, reason: str) -> None:
    job = jobs.get(job_id)
    assert (job.status, job.status_reason, job.failures, job.not_before) == ("queued", reason, 0, None)


def assert_saved_and_queued(jobs: Jobs, job_id: str, reason: str) -> None:
    assert_queued(jobs, job_id, reason)
    assert [event.type for event in jobs.events(job_id)][-2:] == ["checkpoint", "requeued"]


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.long)], indirect=True)
def test_a_drained_worker_saves_its_job_claims_no_other_and_ends(database: Database, start_worker: StartWorker) -> None:
    jobs = Jobs(database)
    worker = start_worker(database, **PATIENT)
    job_id = start_endless(worker, jobs)
    waiting = jobs.submit(SHORT)

    database.write(lambda session: workers.drain(session, row_of(worker).id))

    assert worker.wait() == 0, worker.log()
    assert_saved_and_queued(jobs, job_id, "worker_stopped")
    assert jobs.get(waiting).attempt == 0
    assert row_of(worker).state == "stopped"
    assert audit(database).findings == []


@pytest.mark.parametrize("waits", [False, True])
def test_an_idle_worker_that_is_drained_ends(
    sqlite_database: Database, start_worker: StartWorker, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--drained-wait` it ends at the signal: Docker would restart it at once."""
    worker = start_worker(sqlite_database, "--drained-wait") if waits else start_worker(sqlite_database)
    monkeypatch.setenv("WCL_DATABASE_URL", sqlite_database.url)
    check = ["check", "--worker", row_of(worker).name]
    assert main(check) == 0

    sqlite_database.write(lambda session: workers.drain(session, row_of(worker).id))

    if waits:
        eventually(lambda: row_of(worker).state == "stopped", f"the end of its work\n{worker.log()}")
        assert psutil.pid_exists(worker.pid)
        worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker.log()
    assert main(check) == 1


@pytest.mark.parametrize("database", [pytest.param("sqlite", marks=pytest.mark.long), "postgres"], indirect=True)
def test_an_urgent_job_preempts_another_one_which_then_continues(database: Database, start_worker: StartWorker) -> None:
    jobs = Jobs(database)
    worker = start_worker(database, **PATIENT)
    job_id = start_endless(worker, jobs, preemptible=True)

    urgent = jobs.submit(SHORT, priority=1)

    assert jobs.wait_for(urgent, "succeeded", "failed").status == "succeeded", worker.log()
    types = [event.type for event in jobs.events(job_id)]
    assert types[types.index("preempt_requested") + 1 :][:2] == ["checkpoint", "requeued"]
    again = jobs.wait_for(job_id, "running")
    assert (again.attempt, again.failures) == (2, 0)
    eventually(lambda: [e.type for e in jobs.events(job_id)].count("started") == 2, "the second start")
    starts = [event.data["start_step"] for event in jobs.events(job_id) if event.type == "started"]
    saved = [event.data["step"] for event in jobs.events(job_id) if event.type == "checkpoint"]
    assert starts[0] == 0 < starts[1]
    assert starts[1] in saved
    database.write(lambda session: transitions.cancel(session, job_id))
    jobs.wait_for(job_id, "cancelled")
    assert audit(database).findings == []


def test_a_job_at_its_time_limit_ends_after_a_checkpoint(sqlite_database: Database, start_worker: StartWorker) -> None:
    jobs = Jobs(sqlite_database)
    worker = start_worker(sqlite_database, **PATIENT)
    job_id = start_endless(worker, jobs, max_seconds=3600)

    lowered = update(Job).values(max_seconds=1)  # as if it had run for an hour
    sqlite_database.write(lambda session: session.execute(lowered))

    job = jobs.wait_for(job_id, "failed", "succeeded")

    assert (job.status, job.status_reason, job.failures) == ("failed", "timeout", 0), worker.log()
    assert [event.type for event in jobs.events(job_id)][-2:] == ["checkpoint", "failed"]


@pytest.mark.long
def test_cancel_and_time_limit_end_a_run_that_decodes_photographs(
    sqlite_database: Database, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A training and an evaluation, without room for a cache; neither finishes its data."""
    folders = json.dumps({"photos": str(photographs(tmp_path / "photos", 24))})
    worker = start_worker(sqlite_database, WCL_DATASETS=folders, WCL_CACHE_BYTES="0", **PATIENT)
    jobs = Jobs(sqlite_database)
    data = {"name": "photos", "image_size": 224}

    def decoders() -> list[psutil.Process]:
        run = worker.run_process()
        children = [] if run is None else run.children()
        return [each for each in children if "wcl_core.data.decoding" in each.cmdline()]

    cancelled = jobs.submit(SHORT | {"data": data, "batch_size": 8})
    first = eventually(decoders, f"the first decoding\n{worker.log()}")
    sqlite_database.write(lambda session: transitions.cancel(session, cancelled))
    jobs.wait_for(cancelled, "cancelled")

    limited = jobs.submit({"data": data, "features": {"kind": "pixels"}, "protocols": ["knn"]}, "evaluate")
    second = eventually(decoders, f"the second decoding\n{worker.log()}")
    lowered = update(Job).where(Job.id == limited).values(max_seconds=1)
    sqlite_database.write(lambda session: session.execute(lowered))
    job = jobs.wait_for(limited, "failed", "succeeded")

    assert (job.status, job.status_reason) == ("failed", "timeout"), worker.log()
    eventually(lambda: not any(map(psutil.Process.is_running, first + second)), "the end of the processes that decode")


# --- one job, for batch systems ------------------------------------------------------------------------------------


def start_once(database: Database, folder: Path, *options: str, **settings: str) -> RunningWorker:
    worker = RunningWorker(database, folder, **settings)
    worker.options = ("--once", *options)
    return worker.start()


def test_once_without_a_waiting_job_succeeds(sqlite_database: Database, tmp_path: Path) -> None:
    worker = start_once(sqlite_database, tmp_path / "data")

    assert worker.wait() == 0
    assert "no waiting job fits" in worker.log()


def test_once_takes_one_job_and_no_other(sqlite_database: Database, tmp_path: Path) -> None:
    jobs = Jobs(sqlite_database)
    start_once(sqlite_database, tmp_path / "data").wait()  # it announces its dataset
    first, second = jobs.submit(SHORT), jobs.submit(SHORT)

    worker = start_once(sqlite_database, tmp_path / "data")

    assert worker.wait() == 0
    assert [jobs.get(job_id).status for job_id in (first, second)] == ["succeeded", "queued"], worker.log()


def test_once_saves_its_job_at_a_signal(sqlite_database: Database, tmp_path: Path) -> None:
    jobs = Jobs(sqlite_database)
    start_once(sqlite_database, tmp_path / "data").wait()
    job_id = jobs.submit(ENDLESS)
    worker = start_once(sqlite_database, tmp_path / "data", **PATIENT)
    eventually(lambda: jobs.num_checkpoints(job_id) >= 1, "a checkpoint")

    worker.send(signal.SIGTERM)

    assert worker.wait() == 0, worker.log()
    assert_saved_and_queued(jobs, job_id, "worker_stopped")


def test_once_returns_its_job_before_its_time_is_over(sqlite_database: Database, tmp_path: Path) -> None:
    jobs = Jobs(sqlite_database)
    start_once(sqlite_database, tmp_path / "data").wait()
    job_id = jobs.submit(ENDLESS)

    worker = start_once(sqlite_database, tmp_path / "data", "--max-seconds", "35", **PATIENT)

    assert worker.wait() == 0, worker.log()
    assert_queued(jobs, job_id, "worker_stopped")


def test_a_limit_that_leaves_no_time_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker", "--once", "--max-seconds", "5"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("WCL_")},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 2
    assert "--max-seconds: 5 is too short; expected more than the 25 s" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_each_line_of_a_json_log_is_an_object_also_at_the_stop(
    sqlite_database: Database, start_worker: StartWorker, number: signal.Signals
) -> None:
    worker = start_worker(sqlite_database, WCL_LOG_FORMAT="json")
    eventually(lambda: " ready." in worker.whole_log(), f"Celery's handlers\n{worker.log()}")

    assert worker.stop(number) == 0, worker.log()

    lines = [json.loads(line) for line in worker.whole_log().splitlines()]
    assert any("shutdown (MainProcess)" in line["message"] for line in lines)


def test_the_line_of_the_end_of_an_attempt_names_the_job(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    worker = start_worker(sqlite_database, WCL_LOG_FORMAT="json")
    job_id = jobs.submit(SHORT)
    assert jobs.wait_for(job_id, "succeeded", "failed").status == "succeeded"
    eventually(worker.is_idle, "the worker's rest")

    lines = [json.loads(line) for line in worker.whole_log().splitlines()]
    (end,) = [line for line in lines if " ended: succeeded" in line["message"]]
    assert (end["job_id"], end["attempt"]) == (job_id, 1)
