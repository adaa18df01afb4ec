"""A worker without room, data set or GPU takes no job and says so; others, and the queue, go on."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from jobs import queries
from jobs.database import Database
from jobs.models import Worker
from jobs.settings import Settings
from jobs.status import Reason
from tests.disks import Disk, mounted
from tests.waiting import eventually
from tests.worker.conftest import StartWorker
from tests.worker.running import ENDLESS, SHORT, Jobs, RunningWorker
from worker import room
from worker.datasets import DatasetCheck, Source
from worker.exit_reason import exit_reason
from worker.room import RoomCheck

pytestmark = pytest.mark.timeout(300)

MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The free bytes of every disk."""
    value = [100 * MIB]
    monkeypatch.setattr(room, "free_bytes", lambda folder: value[0])
    return value


@pytest.fixture
def check(tmp_path: Path, clock: Clock, free: list[int]) -> RoomCheck:
    return RoomCheck(Settings(data_dir=tmp_path), clock)


def test_a_disk_with_less_than_a_mebibyte_is_full(check: RoomCheck, free: list[int]) -> None:
    assert check() is None
    free[0] = MIB - 1
    assert (unable := check()) is not None
    assert unable.reason == Reason.DISK_FULL


def test_after_a_full_disk_it_waits_longer_each_time_or_for_room(
    check: RoomCheck, clock: Clock, free: list[int]
) -> None:
    waits = []
    for _ in range(12):
        check.note_end("disk_full")
        began = clock.now
        while check() is not None:
            clock.now += 1
        waits.append(clock.now - began)
    assert waits[:3] == [4, 8, 16]
    assert max(waits) == 600

    check.note_end("disk_full")
    assert check() is not None
    free[0] += 16 * MIB
    assert check() is None

    check.note_end("succeeded")
    check.note_end("storage_unavailable")
    assert check() is not None
    clock.now += 4
    assert check() is None, "the count began anew after a good end"


def test_a_dataset_that_is_gone_concerns_its_own_jobs_only(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    sources, changes = {"flowers": Source(None, tmp_path / "secret"), "digits": Source(None, None)}, []  # type: ignore[arg-type]
    check = DatasetCheck(sources, changes.append)
    for _ in range(2):
        check()
    assert (check.absent, changes) == (frozenset(), [])

    (tmp_path / "secret").rmdir()
    for _ in range(2):
        assert check() is None, "it makes no worker unable"  # type: ignore[func-returns-value]
    assert (check.absent, changes) == ({"flowers"}, ["flowers"])

    (tmp_path / "secret").mkdir()
    check()
    assert (check.absent, changes) == (frozenset(), ["flowers"] * 2)


def test_a_file_in_place_of_a_folder_of_the_data_folder_takes_no_job(check: RoomCheck, tmp_path: Path) -> None:
    (tmp_path / "attempts").write_text("")
    unable = check()
    assert unable is not None
    assert "attempts in its data folder is a file" in unable.message


def test_the_good_end_of_an_attempt_that_ran_during_the_fault_ends_no_pause(check: RoomCheck, clock: Clock) -> None:
    before = clock.now - 1
    check.note_end("disk_full")

    check.note_end("succeeded", before)
    assert check() is not None
    clock.now += 4
    check.note_end("succeeded", clock.now)
    assert check() is None


@pytest.fixture
def data_disk(tmp_path: Path) -> Iterator[Disk]:
    """A small disk of the data folder; tests request it before `start_worker`, so that workers end first."""
    with mounted(tmp_path / "data", "24m") as disk:
        yield disk


def row_of(worker: RunningWorker) -> Worker:
    with worker.database.read() as session:
        return next(row for row in queries.workers(session) if row.pid == worker.pid)


def test_a_full_disk_stops_its_users_and_not_the_queue(
    sqlite_database: Database, jobs: Jobs, data_disk: Disk, start_worker: StartWorker
) -> None:
    filler = data_disk.fill()
    worker = start_worker(sqlite_database)
    ids = [jobs.submit(SHORT) for _ in range(3)]
    eventually(lambda: row_of(worker).unable == "disk_full", "the reason")
    time.sleep(2)

    assert [(jobs.get(each).status, jobs.get(each).attempt) for each in ids] == [("queued", 0)] * 3
    assert worker.log().count("takes no jobs: the disk of attempts in its data folder is full") <= 1
    filler.unlink()
    for each in ids:
        assert jobs.wait_for(each, "succeeded", "failed", "paused").status == "succeeded"
    eventually(lambda: row_of(worker).unable is None, "an able worker")


def test_a_disk_that_fills_up_under_a_job_pauses_one_job_and_not_the_queue(
    sqlite_database: Database, jobs: Jobs, data_disk: Disk, start_worker: StartWorker
) -> None:
    worker = start_worker(sqlite_database)
    filler = data_disk.fill(leave_bytes=3 * MIB)
    spec = SHORT | {"backbone": SHORT["backbone"] | {"width": 64}}
    ids = [jobs.submit(spec) for _ in range(2)]
    eventually(lambda: "paused" in [jobs.get(each).status for each in ids], "a full disk")
    eventually(lambda: row_of(worker).unable == "disk_full", "the reason")

    assert sorted(jobs.get(each).attempt for each in ids) == [0, 1]
    filler.unlink()
    data_disk.resize("200m")
    for each in ids:
        assert jobs.wait_for(each, "succeeded", "failed").status == "succeeded"
        assert jobs.get(each).failures == 0


def has_run(worker: RunningWorker) -> bool:
    for process in psutil.Process(worker.pid).children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            if "attempt" in process.cmdline():
                return True
    return False


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_run_whose_last_report_finds_no_room_pauses_its_job(
    kind: str, request: pytest.FixtureRequest, sqlite_template: Path, data_disk: Disk, start_worker: StartWorker
) -> None:
    """A SQLite file on the full disk takes the end of the attempt only once there is room again."""
    if kind == "sqlite":
        shutil.copyfile(sqlite_template, data_disk.folder / "wcl.sqlite3")
        database = Database(f"sqlite:///{data_disk.folder / 'wcl.sqlite3'}")
    else:
        database = request.getfixturevalue("postgres_database")
    jobs = Jobs(database)
    worker = start_worker(database)
    job_id = jobs.submit(ENDLESS)
    eventually(lambda: jobs.num_checkpoints(job_id) >= 1, "a checkpoint")

    filler = data_disk.fill()
    eventually(lambda: not has_run(worker), "the end of the run")
    filler.unlink()

    eventually(lambda: jobs.get(job_id).attempt == 2, f"the next attempt\n{worker.log()}")
    assert [event.data["reason"] for event in jobs.events(job_id) if event.type == "paused"] == ["disk_full"]
    assert jobs.get(job_id).failures == 0
    database.dispose()


def test_a_read_only_data_folder_takes_no_job_until_it_can_be_written(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker, tmp_path: Path
) -> None:
    with mounted(tmp_path / "data" / "attempts", "24m") as disk:
        worker = start_worker(sqlite_database)
        disk.make_read_only()
        job_id = jobs.submit(SHORT)
        eventually(lambda: row_of(worker).unable == "storage_unavailable", "the reason")
        time.sleep(1)
        assert (jobs.get(job_id).status, jobs.get(job_id).attempt) == ("queued", 0)

        disk.make_read_only(False)
        assert jobs.wait_for(job_id, "succeeded", "failed", "paused").status == "succeeded"


def test_a_worker_without_file_descriptors_fails_no_job(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    worker = start_worker(sqlite_database)
    process = psutil.Process(worker.pid)
    unlimited = process.rlimit(psutil.RLIMIT_NOFILE)
    few = process.num_fds() + 4  # enough for the database, too few to start a run
    process.rlimit(psutil.RLIMIT_NOFILE, (few, unlimited[1]))
    job_id = jobs.submit(SHORT)
    time.sleep(6)
    assert jobs.get(job_id).status in ("queued", "running", "paused"), worker.log()

    process.rlimit(psutil.RLIMIT_NOFILE, unlimited)
    job = jobs.wait_for(job_id, "succeeded", "failed")
    assert (job.status, job.failures) == ("succeeded", 0), worker.log()
    assert len(worker.log().splitlines()) < 60


def test_a_run_that_was_killed_on_a_full_disk_counts_as_that_also_if_it_has_room_again(tmp_path: Path) -> None:
    assert exit_reason(-signal.SIGKILL, tmp_path, None, was_full=True).reason == "disk_full"
    assert exit_reason(-signal.SIGKILL, tmp_path, None).reason == "killed"
