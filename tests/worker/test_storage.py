"""Real workers and their storage: another folder, files that are away, and files that decay."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import select, update

from jobs import queries, transitions, waiting
from jobs.database import Database
from jobs.models import Job, Storage
from tests import disks
from tests.waiting import eventually
from tests.worker.conftest import StartWorker
from tests.worker.running import ENDLESS, SHORT, Jobs, RunningWorker
from tests.worker.test_supervisor import pause_with_checkpoints, start_of_attempt

pytestmark = [pytest.mark.timeout(300), pytest.mark.process]


def test_a_worker_with_another_folder_takes_nothing_and_says_so(
    database: Database, start_worker: StartWorker, tmp_path: Path
) -> None:
    """The right worker's jobs stay as they are, and go on there."""
    jobs = Jobs(database)
    right = start_worker(database)
    newest, *_ = pause_with_checkpoints(database, jobs, right, 2)
    right.stop()
    with database.read() as session:
        storage_id = session.execute(select(Storage.storage_id)).scalar_one()
    wrong = RunningWorker(database, tmp_path / "other", WCL_WORKER_NAME="far").start()
    try:
        eventually(wrong.is_idle, "the start of the wrong worker")
        database.write(lambda session: transitions.resume(session, newest.job_id))
        eventually(lambda: "takes no jobs" in wrong.log(), "its log")
        row = eventually(lambda: row if (row := wrong.row()).unable else None, "its row")
        with database.read() as session:
            reason = waiting.explain(session, session.get_one(Job, newest.job_id))

        assert (row.unable, row.state) == ("storage_unavailable", "idle")
        assert "storage-id" in (row.unable_message or "")
        assert f"the storage folder {tmp_path / 'other' / 'checkpoints'} has no file" in wrong.log()
        assert reason is not None
        assert reason.cause == "workers_unable"
        assert "far: the storage folder checkpoints has no file" in reason.message
        assert jobs.get(newest.job_id).status == "queued"

        back = right.start()  # it takes the job at once, so it may never be seen idle
        assert start_of_attempt(jobs, newest.job_id, 2) == newest.step
        assert back.row().unable is None
    finally:
        wrong.stop()
    with database.read() as session:
        files = queries.checkpoints(session, newest.job_id)
        assert [row.flaw for row in files] == [None] * len(files)
        assert session.execute(select(Storage.storage_id)).scalar_one() == storage_id
    assert not list((tmp_path / "other").glob("checkpoints/*")), "something was written to the wrong folder"


def test_a_job_without_any_of_its_files_is_paused_and_its_worker_takes_other_jobs(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    worker = start_worker(sqlite_database)
    newest, *_ = pause_with_checkpoints(sqlite_database, jobs, worker, 2)
    folder = worker.folder / "checkpoints" / newest.job_id
    folder.rename(worker.folder / "lost")

    sqlite_database.write(lambda session: transitions.resume(session, newest.job_id))
    job = jobs.wait_for(newest.job_id, "paused")
    assert (job.status_reason, job.failures) == ("storage_unavailable", 0)
    assert newest.job_id in (job.status_message or "")
    assert jobs.wait_for(jobs.submit(SHORT), "succeeded", "failed").status == "succeeded"
    assert worker.row().unable is None
    assert "takes no jobs" not in worker.log()
    with sqlite_database.read() as session:
        assert {row.flaw for row in queries.checkpoints(session, newest.job_id)} == {None}
    # No attempt looks for the files one by one while they return.
    sqlite_database.write(lambda s: s.execute(update(Job).values(pool="later")) and None)
    eventually(lambda: jobs.get(newest.job_id).status != "running", "the end of an attempt that has begun meanwhile")
    (worker.folder / "lost").rename(folder)

    # Its pause grows.
    sqlite_database.write(lambda s: s.execute(update(Job).values(pool="default", not_before=None)) and None)
    eventually(lambda: jobs.get(newest.job_id).status == "running", "the job goes on by itself")
    assert start_of_attempt(jobs, newest.job_id, jobs.get(newest.job_id).attempt) == newest.step
    sqlite_database.write(lambda session: transitions.cancel(session, newest.job_id))
    jobs.wait_for(newest.job_id, "cancelled")
    with sqlite_database.read() as session:
        assert {row.flaw for row in queries.checkpoints(session, newest.job_id)} == {None}


def test_a_job_whose_attempt_folder_cannot_be_made_is_paused_and_its_worker_takes_other_jobs(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    worker = start_worker(sqlite_database)
    blocked = jobs.submit(SHORT, pool="later")
    (worker.folder / "attempts").mkdir(exist_ok=True)
    place = worker.folder / "attempts" / blocked
    place.write_text("a file in place of the folder")
    sqlite_database.write(lambda s: s.execute(update(Job).values(pool="default")) and None)

    job = jobs.wait_for(blocked, "paused", "failed")
    assert (job.status, job.status_reason, job.failures) == ("paused", "storage_unavailable", 0)
    assert jobs.wait_for(jobs.submit(SHORT), "succeeded", "failed").status == "succeeded"
    assert worker.row().unable is None
    assert "takes no jobs" not in worker.log()

    place.unlink()
    sqlite_database.write(lambda s: s.execute(update(Job).values(not_before=None)) and None)
    assert jobs.wait_for(blocked, "succeeded", "failed").status == "succeeded"


def test_a_job_waits_for_its_absent_dataset_while_its_worker_takes_others(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker, tmp_path: Path
) -> None:
    for number in range(12):
        folder = tmp_path / "flowers" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number * 20, 0, 0)).save(folder / f"{number}.png")
    worker = start_worker(sqlite_database, WCL_DATASETS=json.dumps({"flowers": str(tmp_path / "flowers")}))
    (tmp_path / "flowers").rename(tmp_path / "unmounted")
    spec = SHORT | {"data": {"name": "flowers", "image_size": 16}, "batch_size": 4}
    waiting_id = jobs.submit(spec)

    assert jobs.wait_for(jobs.submit(SHORT), "succeeded", "failed").status == "succeeded"
    eventually(lambda: "flowers" in (worker.row().refused_datasets or {}), "the refusal", 60)
    assert (jobs.get(waiting_id).status, jobs.get(waiting_id).attempt) == ("queued", 0)
    assert worker.row().unable is None
    (tmp_path / "unmounted").rename(tmp_path / "flowers")

    assert jobs.wait_for(waiting_id, "succeeded", "failed").status == "succeeded"


@pytest.mark.parametrize("is_hung_at_start", [False, True])
def test_a_job_waits_for_its_dataset_that_does_not_respond_while_its_worker_takes_others(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker, tmp_path: Path, is_hung_at_start: bool
) -> None:
    """Its folder is a mount whose server is gone; another folder is still read when its files change."""
    folders = {name: tmp_path / name for name in ("flowers", "birds")}
    for number in range(24):
        folder = folders["flowers" if number % 2 else "birds"] / "ab"[number % 4 // 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number * 10, 0, 0)).save(folder / f"{number}.png")
    names = json.dumps({name: str(folder) for name, folder in folders.items()})
    worker: RunningWorker | None = None
    with contextlib.ExitStack() as before:
        if is_hung_at_start:
            before.enter_context(disks.hung(folders["flowers"]))
            worker = start_worker(sqlite_database, WCL_DATASETS=names)
        else:
            worker = start_worker(sqlite_database, WCL_DATASETS=names)
            eventually(lambda: {"flowers", "birds"} <= worker.row().datasets.keys(), "both datasets", 60)
            before.enter_context(disks.hung(folders["flowers"]))
        eventually(lambda: "flowers" in (worker.row().refused_datasets or {}), "the refusal", 60)
        eventually(lambda: "birds" in worker.row().datasets, "the other dataset", 60)
        assert "do not respond" in worker.row().refused_datasets["flowers"]
        spec = SHORT | {"data": {"name": "birds", "image_size": 16}, "batch_size": 4}
        waiting_id = None if is_hung_at_start else jobs.submit(spec | {"data": {"name": "flowers", "image_size": 16}})
        assert jobs.wait_for(jobs.submit(spec), "succeeded", "failed").status == "succeeded"
        assert worker.row().unable is None
        if waiting_id is not None:
            assert (jobs.get(waiting_id).status, jobs.get(waiting_id).attempt) == ("queued", 0)

    eventually(lambda: "flowers" in worker.row().datasets, "the end of the refusal", 60)
    if waiting_id is not None:
        assert jobs.wait_for(waiting_id, "succeeded", "failed").status == "succeeded"


@pytest.mark.long
def test_a_run_whose_storage_goes_away_loses_nothing(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    worker = start_worker(sqlite_database)
    job_id = jobs.submit(ENDLESS)
    eventually(lambda: jobs.num_checkpoints(job_id) >= 1, "a checkpoint")
    folder = worker.folder / "checkpoints"
    folder.rename(worker.folder / "unmounted")
    before = jobs.num_checkpoints(job_id)
    eventually(lambda: worker.row().unable, "the worker's word")
    assert not folder.exists(), "the run's files were written beside the storage"

    (worker.folder / "unmounted").rename(folder)

    eventually(lambda: jobs.num_checkpoints(job_id) > before, "the next checkpoint")
    with sqlite_database.read() as session:
        files = queries.checkpoints(session, job_id)
    steps = sorted(row.step for row in files)
    assert all((folder / row.storage_key).exists() for row in files)
    assert [row.flaw for row in files] == [None] * len(files)
    assert steps == sorted(set(steps))
    assert jobs.get(job_id).attempt == 1


def test_a_file_that_decays_is_found_by_the_scrub_and_its_mark_taken_back(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    settings = {"WCL_SCRUB_DAYS": "0", "WCL_SCRUB_MIB_PER_SECOND": "100"}
    worker = start_worker(sqlite_database, **settings)
    job_id = jobs.submit(SHORT)
    jobs.wait_for(job_id, "succeeded")
    with sqlite_database.read() as session:
        newest = queries.checkpoints(session, job_id)[0]
    place = worker.folder / "checkpoints" / newest.storage_key
    good = place.read_bytes()

    def flaw() -> str | None:
        with sqlite_database.read() as session:
            return queries.get_checkpoint(session, newest.id).flaw

    worker.stop()
    place.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    worker = start_worker(sqlite_database, **settings)
    eventually(lambda: flaw() == "damaged", "the mark")
    place.write_bytes(good)
    eventually(lambda: flaw() is None, "the end of the mark")
    assert worker.row().unable is None
