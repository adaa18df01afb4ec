"""Imported weights: one row and one file for each digest, through every crash and every race."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from jobs import checkpoints, weights
from jobs.database import Database
from jobs.errors import Conflict, Invalid, NotFound
from jobs.models import Job, Sweep, Weights
from jobs.storage import LocalStorage
from tests.jobs import rows, sweeping
from tests.weight_files import TINY, weight_file

CONTENT, DIGEST = weight_file()


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "checkpoints")


def store(database: Database, storage: LocalStorage, name: str = "mine", seed: int = 0) -> tuple[Weights, bool]:
    content, digest = weight_file(seed)
    fields = {"sha256": digest, "name": name, "size": len(content), "backbone": TINY, "image_size": 32, "report": {}}
    return weights.store(database, storage, io.BytesIO(content), fields)


def names(database: Database) -> list[str]:
    with database.read() as session:
        return [row.name for row in weights.every(session)]


def files(storage: LocalStorage) -> list[str]:
    return sorted(storage.keys(weights.FOLDER))


def test_the_same_file_twice_is_one_row_and_its_file_is_whole_again(database: Database, storage: LocalStorage) -> None:
    assert store(database, storage)[1]
    place = storage.path(weights.storage_key(DIGEST))
    assert place.read_bytes() == CONTENT

    for spoil in (lambda: place.write_bytes(b"decayed"), place.unlink):
        spoil()
        row, is_new = store(database, storage, "another-name")
        assert (row.name, is_new, place.read_bytes()) == ("mine", False, CONTENT)
    assert names(database) == ["mine"]


def test_a_job_that_is_paused_for_want_of_its_weights_continues_when_they_are_imported_again(
    database: Database, storage: LocalStorage
) -> None:
    rows.add_dataset(database)
    store(database, storage)
    job_id = rows.submit(database, spec={"backbone": TINY, "weights": DIGEST})
    rows.Run(database, rows.claim(database)).end("paused", "missing_checkpoint")
    other = rows.submit(database)
    rows.Run(database, rows.claim(database)).end("paused", "missing_checkpoint")
    assert (rows.status(database, job_id), rows.job(database, job_id).status_reason) == ("paused", "missing_checkpoint")

    store(database, storage)

    assert (rows.status(database, job_id), rows.status(database, other)) == ("queued", "paused")


def test_another_file_of_the_same_name_is_refused_and_leaves_nothing(database: Database, storage: LocalStorage) -> None:
    store(database, storage)

    with pytest.raises(Conflict, match=rf"other weights are called mine \({DIGEST[:12]}…\)"):
        store(database, storage, seed=1)

    assert files(storage) == [weights.storage_key(DIGEST)]


def test_a_name_that_is_taken_while_the_file_is_written_is_refused(
    database: Database, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = LocalStorage.write
    monkeypatch.setattr(
        LocalStorage, "write", lambda *given: (write(*given), monkeypatch.undo(), store(database, storage))
    )

    with pytest.raises(Conflict, match="other weights are called mine"):
        store(database, storage, seed=1)

    assert (names(database), files(storage)) == (["mine"], [weights.storage_key(DIGEST)])


@pytest.mark.parametrize("name", ["last", "a" * 64, "0" * 64])
def test_names_that_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(Invalid, match="is no name"):
        weights.check_format(name)


def test_a_full_storage_leaves_neither_row_nor_file(
    database: Database, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(28, "No space left on device")

    fields: dict[str, Any] = {"sha256": DIGEST, "name": "mine"}
    with pytest.raises(OSError, match="No space"):
        weights.store(database, storage, Broken(), fields)

    assert (names(database), files(storage)) == ([], [])


def test_files_without_a_row_are_removed_and_no_other(database: Database, storage: LocalStorage) -> None:
    store(database, storage)
    kept = weights.storage_key(DIGEST)
    for key in (weights.storage_key("b" * 64), f"weights/{DIGEST}/.weights.safetensors.1.part"):
        storage.write(io.BytesIO(b"half"), key)

    assert weights.collect(database, storage) == 2

    assert files(storage) == [kept]
    assert weights.collect(database, storage) == 0
    weights.discard(database, storage, DIGEST)  # as a removal that is late
    assert files(storage) == [kept]


def test_a_collection_between_file_and_row_makes_the_import_write_again(
    database: Database, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = LocalStorage.write, []

    def written(self: LocalStorage, source: Any, key: str) -> None:
        write(self, source, key)
        calls.append(key)
        if len(calls) == 1:
            assert weights.collect(database, self) == 1

    monkeypatch.setattr(LocalStorage, "write", written)
    store(database, storage)

    assert len(calls) == 2
    assert storage.path(weights.storage_key(DIGEST)).read_bytes() == CONTENT


def test_imports_and_removals_at_once_never_leave_a_row_without_a_file(
    database: Database, storage: LocalStorage
) -> None:
    def act(number: int) -> None:
        try:
            if number % 3 == 0:
                store(database, storage)
            elif number % 3 == 1:
                weights.remove(database, storage, DIGEST)
            else:
                weights.collect(database, storage)
        except (NotFound, Conflict):
            pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(act, range(24)))
    weights.collect(database, storage)

    assert files(storage) == [weights.storage_key(DIGEST)] * len(names(database))
    store(database, storage)
    assert files(storage) == [weights.storage_key(DIGEST)]


def test_removal_takes_the_file_and_waits_for_jobs(database: Database, storage: LocalStorage) -> None:
    rows.add_dataset(database)
    store(database, storage)
    job_id = rows.submit(database, spec={"weights": DIGEST, "backbone": TINY})

    with pytest.raises(Conflict, match=f"job {job_id} needs the weights; cancel it"):
        weights.remove(database, storage, DIGEST)
    assert files(storage) == [weights.storage_key(DIGEST)]

    database.write(lambda session: session.execute(update(Job).values(status="succeeded")))
    weights.remove(database, storage, DIGEST)
    assert (names(database), files(storage)) == ([], [])
    with pytest.raises(NotFound):
        weights.remove(database, storage, DIGEST)
    with pytest.raises(Invalid, match="there are no weights"):
        rows.submit(database, spec={"weights": DIGEST, "backbone": TINY})


@pytest.mark.parametrize("of_trials", [False, True])
def test_a_running_sweep_keeps_the_weights_of_jobs_that_it_has_yet_to_submit(
    database: Database, storage: LocalStorage, of_trials: bool
) -> None:
    rows.add_dataset(database)
    store(database, storage)
    trained = rows.submit(database, spec={"backbone": TINY})
    run = rows.Run(database, rows.claim(database))
    run.deliver(rows.started(), rows.checkpoint(100))
    run.end("succeeded")
    checkpoint_id = rows.checkpoints(database, trained)[-1].id
    for sha256 in (DIGEST, rows.SHA):
        start = {} if of_trials else {"weights": sha256}
        parameters = {"weights": [sha256]} if of_trials else {}
        base = sweeping.BASE | {"backbone": TINY} | start
        sweeping.submit(database, {sweeping.TEMPERATURE: [0.1, 0.2]} | parameters, base=base)
    database.write(lambda session: session.execute(update(Job).values(status="succeeded")))

    with pytest.raises(Conflict, match="sweep .* needs the weights"):
        weights.remove(database, storage, DIGEST)
    with pytest.raises(Conflict, match="sweep .* needs the checkpoint"):
        database.write(lambda session: checkpoints.delete(session, checkpoint_id))
    with database.read() as session:
        assert set(checkpoints.users(session, checkpoints.good(session, trained))) == {checkpoint_id}

    database.write(lambda session: session.execute(update(Sweep).values(status="cancelled")))
    weights.remove(database, storage, DIGEST)
    database.write(lambda session: checkpoints.delete(session, checkpoint_id))


def test_what_is_wrong_with_a_file_is_seen(database: Database, storage: LocalStorage) -> None:
    row, _ = store(database, storage)
    assert weights.flaw(storage, row) is None
    place = storage.path(weights.storage_key(DIGEST))
    place.write_bytes(CONTENT[:-1] + b"x")
    assert "damaged" in str(weights.flaw(storage, row))
    place.unlink()
    assert "missing" in str(weights.flaw(storage, row))
