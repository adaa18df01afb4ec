"""Garbage collection: files of deleted checkpoints and dead attempts are removed after any crash; all others stay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from jobs import transitions
from jobs.database import Database
from jobs.settings import Settings
from jobs.storage import KEEPING, MARKER, OWNER, LocalStorage
from tests.jobs import rows
from tests.waiting import eventually
from tests.worker.conftest import StartWorker
from tests.worker.leftovers import write_run_file
from tests.worker.running import SHORT
from tests.worker.test_delivery import Spool, deliver_all
from worker import recovery
from worker.attempt_folder import mark_of, place_of
from worker.garbage import collect_garbage
from worker.process import MARK, marked


@pytest.fixture
def spool(database: Database, tmp_path: Path) -> Spool:
    """Return the spool of a running attempt whose job keeps one checkpoint."""
    return Spool(database, tmp_path, SHORT | {"checkpoints": {"keep_last": 1}})


def stored(spool: Spool) -> list[str]:
    return sorted(
        path.name
        for path in spool.storage.root.rglob("*")
        if path.is_file() and path.name not in (MARKER, OWNER, KEEPING)
    )


def end(spool: Spool) -> None:
    spool.database.write(lambda s: transitions.end_attempt(s, spool.ref, "failed", "worker_lost"))


def recover(spool: Spool, data_dir: Path) -> None:
    """Recover attempts and collect garbage, as a starting worker does."""
    recovery.recover(spool.database, spool.storage, Settings(data_dir=data_dir))
    collect_garbage(spool.database, spool.storage, spool.storage.job_ids())


def test_the_file_of_a_deleted_checkpoint_is_removed_after_the_commit(spool: Spool) -> None:
    spool.write_checkpoint(5, b"older")
    spool.write_checkpoint(10, b"newer")
    deliver_all(spool.delivery())

    assert [row.step for row in spool.checkpoints()] == [10]
    assert stored(spool) == ["step-00000010.safetensors"]


def test_a_crash_before_the_removal_leaves_no_row_without_a_file_and_no_lasting_orphan(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.write_checkpoint(5, b"older")
    spool.write_checkpoint(10, b"newer")

    def crash(*_: Any) -> None:
        raise OSError("the machine died here")

    with monkeypatch.context() as context:
        context.setattr(spool.storage, "delete", crash)
        deliver_all(spool.delivery())
    assert [spool.storage.path(row.storage_key).read_bytes() for row in spool.checkpoints()] == [b"newer"]
    assert len(stored(spool)) == 2

    recover(spool, tmp_path / "data")
    assert stored(spool) == ["step-00000010.safetensors"]


def test_an_unregistered_file_stays_while_its_attempt_may_register_it(spool: Spool, tmp_path: Path) -> None:
    spool.write_checkpoint(5, b"registered")
    deliver_all(spool.delivery())
    for name in ("step-00000010.safetensors", ".step-00000015.safetensors.99.part"):
        (tmp_path / "written").write_bytes(b"not registered")
        spool.storage.put(tmp_path / "written", f"{spool.ref.folder}/{name}")

    collect_garbage(spool.database, spool.storage, [spool.job_id])
    assert len(stored(spool)) == 3
    end(spool)
    collect_garbage(spool.database, spool.storage, [spool.job_id])
    assert stored(spool) == ["step-00000005.safetensors"]


def test_an_artifact_stays_until_another_one_of_its_name_replaces_it(spool: Spool) -> None:
    first, second = spool.write_artifact("probe.png", b"first"), spool.write_artifact("probe.json", b"{}")
    deliver_all(spool.delivery())
    third = spool.write_artifact("probe.png", b"third")
    spool.write_checkpoint(5, b"older")
    spool.write_checkpoint(10, b"newer")  # one of the two is kept, and all artifacts
    deliver_all(spool.delivery())
    assert {f"{first[:16]}-probe.png", f"{third[:16]}-probe.png"} <= set(stored(spool))

    end(spool)
    collect_garbage(spool.database, spool.storage, [spool.job_id])

    names = [f"{second[:16]}-probe.json", f"{third[:16]}-probe.png", "step-00000010.safetensors"]
    assert stored(spool) == sorted(names)
    assert spool.artifacts() == {"probe.json": b"{}", "probe.png": b"third"}


def test_files_of_another_database_are_left_alone(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "written").write_bytes(b"of another service")
    spool.storage.put(tmp_path / "written", "01a00000-0000-7000-8000-000000000001/1/step-1.safetensors")

    recover(spool, tmp_path / "data")

    assert stored(spool) == ["step-1.safetensors"]


def test_a_folder_without_a_run_file_is_removed_once_its_attempt_has_ended(spool: Spool, tmp_path: Path) -> None:
    """The worker died between making the folder and writing into it, or lost its disk's last writes."""
    attempts = Settings(data_dir=tmp_path / "data").attempts_dir
    bare, unknown = attempts / spool.ref.folder, attempts / "unknown" / "1-0000"
    for folder in (bare, unknown):
        folder.mkdir(parents=True)

    recover(spool, tmp_path / "data")
    assert bare.exists()
    end(spool)
    recover(spool, tmp_path / "data")

    assert not bare.exists()
    assert unknown.exists()


def test_a_folder_of_this_host_is_removed_once_its_attempt_has_ended(spool: Spool, tmp_path: Path) -> None:
    folder = Settings(data_dir=tmp_path / "data").attempts_dir / spool.ref.folder
    folder.mkdir(parents=True)
    write_run_file(folder, spool.ref)
    end(spool)

    recover(spool, tmp_path / "data")

    assert not folder.exists()


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"attempt": 2}, {"token": "0" * 16}, {"place": None}])
def test_a_folder_of_another_host_or_attempt_is_not_recovered(
    spool: Spool, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """As in a data folder that several machines share, or in a folder that was renamed; its lease ends the attempt."""
    folder = Settings(data_dir=tmp_path / "data").attempts_dir / spool.ref.folder
    folder.mkdir(parents=True)
    write_run_file(folder, spool.ref, **changes)

    recover(spool, tmp_path / "data")

    assert rows.attempts(spool.database, spool.job_id)[0].ended_at is None
    assert folder.exists()


@pytest.mark.process
def test_a_copy_of_a_data_folder_recovers_nothing_of_its_original(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy's lock is free, and everything in it names the same attempt, whose run is alive."""
    monkeypatch.setattr(recovery, "_ORPHAN_SECONDS", 0.2)
    folder = Settings(data_dir=tmp_path / "data").attempts_dir / spool.ref.folder
    folder.mkdir(parents=True)
    write_run_file(folder, spool.ref)
    subprocess.run(["cp", "-a", tmp_path / "data", tmp_path / "copy"], check=True)
    mark = mark_of(spool.ref, place_of(folder))
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(command, env=os.environ | {MARK: mark}) as run:
        eventually(lambda: list(marked(mark)), "the run")

        recover(spool, tmp_path / "copy")
        assert run.poll() is None
        assert rows.attempts(spool.database, spool.job_id)[0].ended_at is None

        recover(spool, tmp_path / "data")
        assert list(marked(mark)) == []
    assert rows.attempts(spool.database, spool.job_id)[0].end_reason == "worker_lost"
    recover(spool, tmp_path / "copy")
    assert list((tmp_path / "copy").rglob("run.json")) == [], "it is of no use once the attempt has ended"


def put(spool: Spool, key: str) -> None:
    source = spool.folder / "written"
    source.write_bytes(b"a file")
    spool.storage.put(source, key)


def test_garbage_collection_queries_hundreds_of_jobs_at_once(spool: Spool) -> None:
    """It also finds the orphan among them."""
    others = [f"01a00000-0000-7000-8000-{number:012d}" for number in range(450)]
    for job_id in others:  # written without a sync, which would take seconds
        file = spool.storage.root / job_id / "1" / "step-1.safetensors"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"a file")
    put(spool, f"{spool.ref.folder}/step-1.safetensors")
    end(spool)
    statements: list[str] = []
    event.listen(spool.database.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))

    collect_garbage(spool.database, spool.storage, [*others[:225], spool.job_id, *others[225:]])

    assert len(stored(spool)) == 450
    assert sum(statement.startswith("SELECT") for statement in statements) == 2 * 3


def test_files_that_cannot_be_removed_do_not_block_the_others(spool: Spool) -> None:
    class Broken(LocalStorage):
        def keys(self, job_id: str) -> Iterator[str]:
            if job_id == "broken":
                raise PermissionError("not yours")
            return super().keys(job_id)

    put(spool, f"{spool.ref.folder}/step-1.safetensors")
    end(spool)

    collect_garbage(spool.database, Broken(spool.storage.root), ["broken"] * 200 + [spool.job_id])

    assert stored(spool) == []


def test_a_starting_worker_collects_garbage_beside_its_work(
    sqlite_database: Database, tmp_path: Path, start_worker: StartWorker
) -> None:
    """Without a folder of an earlier worker, nothing reads the storage before the first claim."""
    spool = Spool(sqlite_database, tmp_path)
    end(spool)
    settings = Settings(data_dir=tmp_path / "data")
    spool.storage = LocalStorage(settings.checkpoints_dir)
    put(spool, f"{spool.ref.folder}/step-1.safetensors")

    recovery.recover(spool.database, spool.storage, settings)
    assert stored(spool) == ["step-1.safetensors"]

    start_worker(sqlite_database)
    eventually(lambda: not stored(spool), "the sweep")
