"""No trial is doubled or lost, with many concurrent reconcilers and with crashes at any point."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from jobs import storage_id
from jobs.database import Database
from jobs.reconciler import Reconciler
from jobs.settings import Settings
from jobs.storage import LocalStorage
from tests.jobs import rows
from tests.jobs.rows import at_once
from tests.jobs.sweeping import advance, entered, halving, places, play, sweep
from tests.processes import Forked, outside
from tests.waiting import eventually
from wcl_client.up import free_port

SMALL: dict[str, Any] = {"temperatures": 4, "eta": 2, "min_epochs": 4}  # 4, 2 and 1 trials


def temperature(spec: dict[str, Any]) -> float:
    return float(spec["loss"]["temperature"])


@pytest.mark.slow
def test_concurrent_advances_add_each_job_once(database: Database) -> None:
    rows.add_dataset(database)
    sweep_id = halving(database, seeds=(0, 1), max_parallel=3, **SMALL)
    while sweep(database, sweep_id).status == "running":
        play(database, temperature)
        at_once(4, lambda _: advance(database, sweep_id))

    result = places(database, sweep_id)
    assert len(result) == len(set(result)) == 2 * (4 + 2 + 1)
    assert sweep(database, sweep_id).best_trial == 3


@pytest.mark.slow
def test_two_reconcilers_start_each_trial_once(database: Database, tmp_path: Path) -> None:
    rows.add_dataset(database)
    sweep_id = halving(database, max_parallel=2, **SMALL)
    settings = Settings(data_dir=tmp_path, lease_seconds=60, look_seconds=0.01)
    stop = threading.Event()
    loops = [Reconciler(database, settings, sends_wake_ups=False) for _ in range(2)]
    threads = [threading.Thread(target=loop.run, args=(stop,)) for loop in loops]
    for thread in threads:
        thread.start()

    def has_ended() -> bool:
        play(database, temperature)
        return sweep(database, sweep_id).status != "running"

    eventually(has_ended, "the end of the sweep")
    stop.set()
    for thread in threads:
        thread.join()

    result = places(database, sweep_id)
    assert len(result) == len(set(result)) == 4 + 2 + 1
    assert sweep(database, sweep_id).status == "succeeded"


def test_the_database_refuses_a_second_job_of_one_place(database: Database) -> None:
    rows.add_dataset(database)
    sweep_id, other = halving(database, **SMALL), halving(database, **SMALL)
    with pytest.raises(IntegrityError):
        rows.submit(database, sweep_id=sweep_id, origin="trial/0/rung/0/seed/0")
    rows.submit(database, sweep_id=other, origin="trial/0/rung/1/seed/0")


@pytest.mark.process
@pytest.mark.parametrize(
    ("moment", "mode"), [("after", "sqlite"), pytest.param("before", "postgres", marks=pytest.mark.long)]
)
def test_a_server_killed_during_promotion_loses_and_doubles_no_job(
    request: pytest.FixtureRequest, moment: str, mode: str, tmp_path: Path
) -> None:
    database: Database = request.getfixturevalue(f"{mode}_database")
    rows.add_dataset(database)
    sweep_id = halving(database, **SMALL)
    play(database, temperature)
    (tmp_path / "armed").write_text(f"commit.{moment}:advance kill")

    with served(database, tmp_path, FAILPOINTS=str(tmp_path)) as server:
        assert server.wait(timeout=60) == -9
    assert entered(database, sweep_id, 1) == ([] if moment == "before" else [2, 3])

    with served(database, tmp_path):
        eventually(lambda: entered(database, sweep_id, 1), "the next rung")
        play(database, temperature)
        eventually(lambda: entered(database, sweep_id, 2), "the last rung")
        play(database, temperature)
        eventually(lambda: sweep(database, sweep_id).status != "running", "the end of the sweep")

    assert (sweep(database, sweep_id).status, sweep(database, sweep_id).best_trial) == ("succeeded", 3)
    assert [entered(database, sweep_id, rung) for rung in range(3)] == [[0, 1, 2, 3], [2, 3], [3]]


@contextmanager
def served(database: Database, folder: Path, **settings: str) -> Iterator[Forked]:
    """Run a server process, killed at the end; its reconciler polls often and reaps no attempt."""
    own = {"WCL_DATA_DIR": str(folder / "data"), "WCL_PORT": str(free_port()), "WCL_LOOK_SECONDS": "0.2"}
    own |= {"WCL_DATABASE_URL": database.url, "WCL_LEASE_SECONDS": "100000"}
    storage = LocalStorage(folder / "data" / "checkpoints")
    storage.root.mkdir(parents=True, exist_ok=True)
    storage_id.adopt(database, storage, without_files=True)  # the rows of these tests have no files
    process = Forked("api", outside() | own | settings, folder / "server.log")
    try:
        yield process
    finally:
        process.kill()
        process.wait()
