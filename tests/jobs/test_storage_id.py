"""A storage is known by its id: the folder and the database carry the same one, or nothing is read or written."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from sqlalchemy import delete, update

from jobs import models, storage_id
from jobs.database import Database
from jobs.models import Checkpoint
from jobs.settings import Settings
from jobs.storage import MARKER, ForeignStorage, LocalStorage, StorageUnavailable
from tests.jobs import rows

KEY = "{job}/1-0123456789abcdef/step-1.safetensors"


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "checkpoints")


def put(storage: LocalStorage, key: str, content: bytes = b"state") -> Path:
    source = storage.root.parent / "written"
    source.write_bytes(content)
    storage.put(source, key)
    return storage.path(key)


def forget(database: Database) -> None:
    """Make the database one that knows no storage, as before the version with ids."""
    database.write(lambda session: session.execute(delete(models.Storage)) and None)


def registered(database: Database) -> str:
    """Return the id of a job with a registered checkpoint."""
    rows.add_dataset(database)
    run = rows.Run(database, rows.running(database))
    run.deliver(rows.started(), rows.checkpoint(1))
    return run.job_id


def test_the_first_process_gives_both_one_id_and_later_ones_compare_it(database: Database, tmp_path: Path) -> None:
    folders = [LocalStorage(tmp_path / "checkpoints") for _ in range(8)]

    rows.at_once(8, lambda number: storage_id.connect(database, folders[number]))

    assert len({storage.id for storage in folders}) == 1
    assert (tmp_path / "checkpoints" / MARKER).read_text() == f"{folders[0].id}\n"
    assert len(rows.rows_of(database, models.Storage)) == 1


def test_nothing_is_done_in_another_folder(database: Database, storage: LocalStorage, tmp_path: Path) -> None:
    storage_id.connect(database, storage)
    place = put(storage, "job/1/a")
    for name in ("empty", "of another database"):
        other = LocalStorage(tmp_path / name)
        (other.root / "job" / "1").mkdir(parents=True)
        (other.root / "job" / "1" / "a").write_bytes(b"theirs")
        if name != "empty":
            other.mark("00000000-0000-7000-8000-000000000000")
        source = tmp_path / "source"
        source.write_bytes(b"ours")

        with pytest.raises(ForeignStorage, match="adopt-storage"):
            storage_id.connect(database, other)

        for act in (
            lambda s=other, f=source: s.put(f, "job/1/b"),  # type: ignore[misc]
            lambda s=other: s.path("job/1/a"),  # type: ignore[misc]
            lambda s=other: s.open("job/1/a", "0" * 64, 6),  # type: ignore[misc]
            lambda s=other: s.delete("job/1/a"),  # type: ignore[misc]
            lambda s=other: s.keys("job"),  # type: ignore[misc]
            lambda s=other: s.job_ids(),  # type: ignore[misc]
            lambda s=other: s.write(io.BytesIO(b"ours"), "job/1/b"),  # type: ignore[misc]
        ):
            with pytest.raises(StorageUnavailable, match="storage"):
                act()
        assert source.read_bytes() == b"ours"
        assert [path.name for path in (other.root / "job" / "1").iterdir()] == ["a"]
    assert storage.path("job/1/a") == place


def test_a_mount_that_goes_and_comes_back(database: Database, storage: LocalStorage, tmp_path: Path) -> None:
    storage_id.connect(database, storage)
    place = put(storage, "job/1/a")
    storage.root.rename(tmp_path / "unmounted")
    storage.root.mkdir()

    for act in (lambda: storage.path("job/1/a"), lambda: storage_id.connect(database, storage)):
        with pytest.raises(StorageUnavailable, match="mount"):
            act()
    storage.root.rmdir()
    (tmp_path / "unmounted").rename(storage.root)

    storage_id.connect(database, storage)
    assert storage.path("job/1/a") == place


def test_a_new_database_takes_no_files_of_another_one(database: Database, storage: LocalStorage) -> None:
    storage_id.connect(database, storage)
    marker = storage.id
    put(storage, "job/1/a")
    forget(database)

    with pytest.raises(ForeignStorage, match="WCL_DATABASE_URL"):
        storage_id.connect(database, storage)

    assert rows.rows_of(database, models.Storage) == []
    with pytest.raises(StorageUnavailable):
        storage.path("job/1/a")
    assert storage_id.adopt(database, storage) == marker
    storage_id.connect(database, storage)
    assert storage.path("job/1/a").read_bytes() == b"state"


def test_a_database_without_an_id_takes_no_storage_with_one(database: Database, storage: LocalStorage) -> None:
    """The storage has the id of another database, though this one knows its jobs: a backup of an older version."""
    storage_id.connect(database, storage)
    put(storage, KEY.format(job=registered(database)))
    forget(database)

    with pytest.raises(ForeignStorage, match="adopt-storage"):
        storage_id.connect(database, storage)


def test_a_crash_between_marker_and_row_is_mended(database: Database, storage: LocalStorage) -> None:
    storage.mark("00000000-0000-7000-8000-000000000001")

    storage_id.connect(database, storage)

    assert storage.id == "00000000-0000-7000-8000-000000000001"


def test_the_files_of_an_older_version_are_known_by_their_jobs(database: Database, storage: LocalStorage) -> None:
    job_id = registered(database)
    put(storage, KEY.format(job="unknown"))
    with pytest.raises(ForeignStorage, match="another database"):
        storage_id.connect(database, storage)
    storage.id = None
    put(storage, KEY.format(job=job_id))

    storage_id.connect(database, storage)

    assert storage.marker() == storage.id


def test_an_empty_folder_is_not_the_storage_of_registered_files(database: Database, storage: LocalStorage) -> None:
    registered(database)

    with pytest.raises(ForeignStorage, match="absent or empty"):
        storage_id.connect(database, storage)
    assert storage.marker() is None

    database.write(lambda session: session.execute(update(Checkpoint).values(deleted_at=1)) and None)
    storage_id.connect(database, storage)
    assert storage.marker() == storage.id


def test_restored_files_without_a_marker_are_adopted(database: Database, storage: LocalStorage) -> None:
    storage_id.connect(database, storage)
    original_id = storage.id
    (storage.root / MARKER).unlink()
    with pytest.raises(ForeignStorage):
        storage_id.connect(database, storage)

    assert storage_id.adopt(database, storage) == original_id

    storage_id.connect(database, storage)


def test_a_folder_without_any_registered_file_is_adopted_only_on_purpose(
    database: Database, storage: LocalStorage, tmp_path: Path
) -> None:
    storage_id.connect(database, storage)
    put(storage, KEY.format(job=registered(database)))
    other = LocalStorage(tmp_path / "other")
    other.root.mkdir()
    put(other, KEY.format(job="unknown"))

    with pytest.raises(ForeignStorage, match="none of them"):
        storage_id.adopt(database, other)
    assert other.marker() is None

    assert storage_id.adopt(database, other, without_files=True) == storage.id
    assert other.marker() == storage.id
    assert storage_id.adopt(database, storage) == storage.id


@pytest.mark.parametrize("file", ["absent", "empty", "full"])
@pytest.mark.parametrize("has_files", [False, True])
def test_no_new_sqlite_database_is_made_beside_files(tmp_path: Path, file: str, has_files: bool) -> None:
    settings = Settings(data_dir=tmp_path)
    assert settings.sqlite_file == tmp_path / "wcl.sqlite3"
    for name in ("lost+found", ".snapshot/hourly", "job/1-0123456789abcdef"):
        (settings.checkpoints_dir / name).mkdir(parents=True)
    (settings.checkpoints_dir / ".snapshot" / "hourly" / "of the disk").write_bytes(b"")
    if has_files:
        (settings.checkpoints_dir / "job" / "1-0123456789abcdef" / "step-1.safetensors").write_bytes(b"state")
    if file != "absent":
        settings.sqlite_file.write_bytes(b"" if file == "empty" else b"SQLite format 3\0")

    if has_files and file != "full":
        with pytest.raises(ForeignStorage, match="WCL_DATABASE_URL"):
            storage_id.refuse_new_database(settings)
    else:
        storage_id.refuse_new_database(settings)


def test_another_database_than_sqlite_is_not_looked_for_in_the_folder(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url="postgresql://db.example/wcl")
    (settings.checkpoints_dir / "job" / "1-0123456789abcdef").mkdir(parents=True)
    (settings.checkpoints_dir / "job" / "1-0123456789abcdef" / "step-1.safetensors").write_bytes(b"state")

    assert settings.sqlite_file is None
    storage_id.refuse_new_database(settings)


def copy_of(database: Database, target: Path) -> Database:
    """Return a copy of a SQLite database, as `cp -a` makes it."""
    assert database.engine.url.database
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(database.engine.url.database, target)
    return Database(f"sqlite:///{target}")


def test_a_copied_database_does_not_share_the_storage_of_its_original(
    sqlite_database: Database, storage: LocalStorage, tmp_path: Path
) -> None:
    """It would remove the files that the original has registered since the copy."""
    storage_id.connect(sqlite_database, storage)
    place = put(storage, "job/1/a")
    copy = copy_of(sqlite_database, tmp_path / "copy" / "wcl.sqlite3")
    shared = LocalStorage(storage.root)

    with pytest.raises(ForeignStorage, match="is a copy of it"):
        storage_id.connect(copy, shared)
    with pytest.raises(StorageUnavailable):
        shared.delete("job/1/a")
    storage_id.connect(sqlite_database, storage)
    assert storage.path("job/1/a") == place

    storage_id.adopt(copy, shared)
    storage_id.connect(copy, shared)
    with pytest.raises(ForeignStorage, match="is a copy of it"):
        storage_id.connect(sqlite_database, storage)
    copy.dispose()


def test_a_copied_or_moved_data_folder_keeps_its_storage(
    sqlite_database: Database, storage: LocalStorage, tmp_path: Path
) -> None:
    storage_id.connect(sqlite_database, storage)
    put(storage, "job/1/a")
    copy = copy_of(sqlite_database, tmp_path / "copy" / "wcl.sqlite3")
    whole = LocalStorage(shutil.copytree(storage.root, tmp_path / "copy" / "checkpoints"))

    storage_id.connect(copy, whole)
    whole.delete("job/1/a")
    storage_id.connect(sqlite_database, storage)
    assert storage.path("job/1/a").read_bytes() == b"state"

    copy.dispose()
    (tmp_path / "copy").rename(tmp_path / "moved")
    moved = Database(f"sqlite:///{tmp_path / 'moved' / 'wcl.sqlite3'}")
    storage_id.connect(moved, LocalStorage(tmp_path / "moved" / "checkpoints"))
    moved.dispose()


def test_a_database_that_was_moved_by_itself_keeps_its_storage(
    sqlite_database: Database, storage: LocalStorage, tmp_path: Path
) -> None:
    """As from one disk to another: its inode is another one, and the original is gone."""
    first = copy_of(sqlite_database, tmp_path / "first.sqlite3")
    storage_id.connect(first, storage)
    second = copy_of(first, tmp_path / "second.sqlite3")
    first.dispose()
    (tmp_path / "first.sqlite3").unlink()

    storage_id.connect(second, storage)

    assert storage.owner() == second.place()
    second.dispose()


def test_a_folder_that_cannot_be_used_is_not_another_one(database: Database, storage: LocalStorage) -> None:
    """It may respond later, so nothing is to be adopted."""
    storage.root.write_bytes(b"a file in place of the folder")
    with pytest.raises(StorageUnavailable, match="cannot be used") as first:
        storage_id.connect(database, storage)
    storage.root.unlink()
    storage_id.connect(database, storage)
    (storage.root / MARKER).unlink()
    (storage.root / MARKER).mkdir()
    with pytest.raises(StorageUnavailable, match="does not respond") as second:
        storage_id.connect(database, storage)

    for caught in (first, second):
        assert not isinstance(caught.value, ForeignStorage)
        assert "adopt" not in str(caught.value)
