"""The scrub: which file it reads next, at which pace, and how one bad file ends nothing."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from jobs import storage_id
from jobs.database import Database, now_ms
from jobs.models import Checkpoint
from jobs.settings import Settings
from jobs.storage import LocalStorage, StorageUnavailable
from tests.disks import under_modes
from tests.jobs import rows
from tests.worker.test_delivery import Spool, deliver_all
from worker.scrub import Scrub, Stopped

BYTES = b"state" * 50_000
_DAY_MS = 86_400_000


class Stored:
    """A database with jobs, each with checkpoints in one storage that were read long ago."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.folder = database, folder
        self.storage = LocalStorage(folder / "checkpoints")
        rows.add_dataset(database)

    def job(self, num_checkpoints: int) -> str:
        run = rows.Run(self.database, rows.running(self.database))
        run.deliver(rows.started())
        for step in range(1, num_checkpoints + 1):
            key = f"{run.job_id}/1/step-{step}.safetensors"
            (self.storage.root / key).parent.mkdir(parents=True, exist_ok=True)
            (self.storage.root / key).write_bytes(BYTES)
            digest = hashlib.sha256(BYTES).hexdigest()
            run.deliver(rows.checkpoint(step, digest) | {"path": key, "size": len(BYTES)})
        self.database.write(lambda session: session.execute(update(Checkpoint).values(checked_at=step)) and None)
        storage_id.connect(self.database, self.storage)
        return run.job_id

    def place(self, job_id: str, step: int) -> Path:
        return self.storage.root / f"{job_id}/1/step-{step}.safetensors"

    def scrub(self, **settings: Any) -> Scrub:
        return Scrub(self.database, self.storage, Settings(data_dir=self.folder, **settings))

    def flaws(self, job_id: str) -> list[str | None]:
        return [row.flaw for row in rows.checkpoints(self.database, job_id)]


@pytest.fixture
def stored(database: Database, tmp_path: Path) -> Stored:
    return Stored(database, tmp_path)


def run_out(scrub: Scrub) -> int:
    """Return the number of steps until nothing is due."""
    count = 0
    while scrub.step(threading.Event()):
        count += 1
    return count


def test_each_file_is_read_once_in_the_stated_days(stored: Stored) -> None:
    job_id = stored.job(3)
    stored.place(job_id, 2).write_bytes(b"X" + BYTES[1:])
    stored.place(job_id, 3).unlink()
    scrub = stored.scrub(scrub_mib_per_second=1000)

    assert run_out(scrub) == 3

    assert stored.flaws(job_id) == [None, "damaged", "missing"]
    assert run_out(scrub) == 0
    assert stored.scrub(scrub_mib_per_second=1000, scrub_days=1e-9).step(threading.Event())


def test_a_new_checkpoint_counts_as_read(stored: Stored) -> None:
    """The worker that stored it has read it back."""
    stored.job(1)
    run = rows.Run(stored.database, rows.running(stored.database))
    run.deliver(rows.started(), rows.checkpoint(1))

    assert run_out(stored.scrub(scrub_mib_per_second=1000)) == 1


def test_a_job_without_its_files_holds_up_no_other(stored: Stored) -> None:
    lost, kept = stored.job(3), stored.job(3)
    stored.place(kept, 2).write_bytes(b"X" + BYTES[1:])
    (stored.storage.root / lost).rename(stored.folder / "elsewhere")

    run_out(stored.scrub(scrub_mib_per_second=1000))

    assert stored.flaws(lost) == [None] * 3
    assert stored.flaws(kept) == [None, "damaged", None]


def test_a_file_that_the_account_may_not_read_holds_up_no_other(stored: Stored) -> None:
    closed, other = stored.job(3), stored.job(3)
    stored.place(closed, 2).chmod(0)
    stored.place(other, 2).write_bytes(b"X" + BYTES[1:])

    with under_modes():
        assert run_out(stored.scrub(scrub_mib_per_second=1000)) == 6

    assert stored.flaws(closed) == [None] * 3
    assert stored.flaws(other) == [None, "damaged", None]


def test_a_storage_that_is_away_is_not_read(stored: Stored) -> None:
    job_id = stored.job(2)
    stored.storage.root.rename(stored.folder / "elsewhere")
    stored.storage.root.mkdir()

    with pytest.raises(StorageUnavailable):
        stored.scrub().step(threading.Event())

    assert stored.flaws(job_id) == [None, None]


def test_the_pace_is_the_stated_one_and_a_stop_ends_the_reading(sqlite_database: Database, tmp_path: Path) -> None:
    stored = Stored(sqlite_database, tmp_path)
    job_id = stored.job(1)
    size = len(BYTES) / (1 << 20)
    began = time.monotonic()
    stored.scrub(scrub_mib_per_second=size / 0.5).step(threading.Event())
    assert time.monotonic() - began >= 0.5

    stored.database.write(lambda session: session.execute(update(Checkpoint).values(checked_at=1)) and None)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(Stopped):
        stored.scrub(scrub_mib_per_second=size / 60).step(stop)

    (row,) = rows.checkpoints(stored.database, job_id)
    assert (row.flaw, row.checked_at) == (None, 1), "an interrupted reading counts for nothing"


def test_a_pace_of_zero_switches_it_off(sqlite_database: Database, tmp_path: Path) -> None:
    stored = Stored(sqlite_database, tmp_path)
    job_id = stored.job(1)
    stored.place(job_id, 1).write_bytes(b"X" + BYTES[1:])

    stored.scrub(scrub_mib_per_second=0).run(threading.Event())

    assert stored.flaws(job_id) == [None]


def test_a_file_is_read_again_after_the_interval_only(sqlite_database: Database, tmp_path: Path) -> None:
    spool = Spool(sqlite_database, tmp_path)
    spool.write_checkpoint(5, b"weights")
    deliver_all(spool.delivery())
    settings = Settings(data_dir=tmp_path / "data", scrub_days=1, scrub_mib_per_second=100)
    scrub, stop = Scrub(sqlite_database, spool.storage, settings), threading.Event()

    assert not scrub.step(stop), "the worker has read it when it was stored"
    older = update(Checkpoint).values(checked_at=now_ms() - _DAY_MS - 1000)
    sqlite_database.write(lambda session: session.execute(older))

    assert scrub.step(stop)
    assert not scrub.step(stop)
