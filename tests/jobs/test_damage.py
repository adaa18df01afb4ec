"""Marks of checkpoints whose file is damaged or missing: set once, told to the job, and taken back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import update

from jobs import checkpoints, damage, storage_id
from jobs.checked_files import Damaged, Missing
from jobs.database import Database
from jobs.models import Checkpoint
from jobs.storage import LocalStorage, StorageUnavailable
from tests.jobs import rows

BYTES = b"state" * 1000


@dataclass
class Stored:
    """A job with two registered checkpoints, whose files are in a storage."""

    database: Database
    storage: LocalStorage
    job_id: str

    def rows(self) -> list[Checkpoint]:
        """Return the checkpoints, oldest first."""
        return sorted(rows.checkpoints(self.database, self.job_id), key=lambda row: row.step)

    def place(self, index: int) -> Path:
        return self.storage.root / self.rows()[index].storage_key

    def verify(self, index: int) -> Exception | None:
        return damage.verify(self.database, self.storage, self.rows()[index].id)

    def flaws(self) -> list[str | None]:
        return [row.flaw for row in self.rows()]

    def warnings(self) -> list[tuple[str, int]]:
        events = rows.events(self.database, self.job_id)
        return [(event.data["reason"], event.data["step"]) for event in events if event.type == "warning"]


@pytest.fixture
def stored(database: Database, tmp_path: Path) -> Stored:
    rows.add_dataset(database)
    run = rows.Run(database, rows.running(database))
    run.deliver(rows.started())
    storage = LocalStorage(tmp_path / "checkpoints")
    for step in (1, 2):
        key = f"{run.job_id}/{run.number}/step-{step}.safetensors"
        (storage.root / key).parent.mkdir(parents=True, exist_ok=True)
        (storage.root / key).write_bytes(BYTES)
        record = rows.checkpoint(step, hashlib.sha256(BYTES).hexdigest())
        run.deliver(record | {"path": key, "size": len(BYTES)})
    run.end("succeeded")
    storage_id.connect(database, storage)
    return Stored(database, storage, run.job_id)


def test_a_damaged_file_is_marked_and_the_mark_is_taken_back(stored: Stored) -> None:
    assert stored.verify(1) is None
    stored.place(1).write_bytes(b"X" + BYTES[1:])

    assert isinstance(stored.verify(1), Damaged)
    first = stored.rows()[1].damaged_at
    assert isinstance(stored.verify(1), Damaged)

    assert stored.flaws() == [None, "damaged"]
    assert stored.rows()[1].damaged_at == first is not None
    with stored.database.read() as session:
        newest = checkpoints.newest(session, stored.job_id)
    assert newest is not None
    assert newest.step == 1
    stored.place(1).write_bytes(BYTES)
    assert stored.verify(1) is None
    assert stored.flaws() == [None, None]
    assert stored.warnings() == [("damaged_checkpoint", 2), ("restored_checkpoint", 2)]


def test_a_missing_file_is_not_a_damaged_one(stored: Stored) -> None:
    content = stored.place(1).read_bytes()
    stored.place(1).unlink()

    assert isinstance(stored.verify(1), Missing)

    assert stored.flaws() == [None, "missing"]
    assert stored.rows()[1].damaged_at is None
    with stored.database.read() as session:
        assert [row.step for row in checkpoints.good(session, stored.job_id)] == [1]
        assert [row.step for row in checkpoints.missing(session, stored.job_id)] == [2]
    stored.place(1).write_bytes(content[:-1])
    assert isinstance(stored.verify(1), Damaged)
    assert stored.flaws() == [None, "damaged"]
    stored.place(1).write_bytes(content)
    assert stored.verify(1) is None
    assert stored.warnings() == [("missing_checkpoint", 2), ("damaged_checkpoint", 2), ("restored_checkpoint", 2)]


def test_all_files_missing_at_once_mark_nothing(stored: Stored) -> None:
    folder = stored.storage.root / stored.job_id
    folder.rename(folder.with_name("elsewhere"))

    for index in (0, 1):
        with pytest.raises(damage.LostFiles, match=stored.job_id):
            stored.verify(index)

    assert stored.flaws() == [None, None]
    assert stored.warnings() == []
    folder.with_name("elsewhere").rename(folder)
    assert stored.verify(0) is None


def test_a_storage_that_is_another_one_marks_nothing(stored: Stored, tmp_path: Path) -> None:
    stored.storage.root.rename(tmp_path / "elsewhere")
    other = stored.storage.root / stored.rows()[0].storage_key
    other.parent.mkdir(parents=True)
    other.write_bytes(b"of another database")

    for index in (0, 1):
        with pytest.raises(StorageUnavailable):
            stored.verify(index)

    assert stored.flaws() == [None, None]


def test_a_link_that_leads_outside_is_a_damaged_file(stored: Stored, tmp_path: Path) -> None:
    stored.place(1).rename(tmp_path / "moved")
    stored.rows()
    (stored.storage.root / stored.rows()[1].storage_key).symlink_to(tmp_path / "moved")

    assert isinstance(stored.verify(1), Damaged)
    assert stored.flaws() == [None, "damaged"]


def test_a_deleted_checkpoint_gets_no_mark(stored: Stored) -> None:
    row = stored.rows()[1]
    stored.place(1).unlink()
    deleted = update(Checkpoint).where(Checkpoint.id == row.id).values(deleted_at=1)
    stored.database.write(lambda session: session.execute(deleted) and None)

    assert damage.verify(stored.database, stored.storage, row.id) is None
    damage.report(stored.database, stored.storage, row, Missing("it was deleted meanwhile"))

    assert stored.warnings() == []
