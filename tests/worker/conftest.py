"""Real worker processes that end with their tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.database import Database
from tests.waiting import eventually
from tests.worker.running import Jobs, RunningWorker

StartWorker = Callable[..., RunningWorker]


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Start a worker on a database and wait until it is idle."""
    started: list[RunningWorker] = []

    def start(database: Database, *options: str, **settings: str) -> RunningWorker:
        worker = RunningWorker(database, tmp_path / "data", **settings)
        worker.options = options
        worker.start()
        started.append(worker)
        eventually(worker.is_idle, "the start of the worker")
        return worker

    yield start
    for worker in started:
        worker.stop()
        print(worker.log())


@pytest.fixture
def jobs(sqlite_database: Database) -> Jobs:
    """Return the jobs of the SQLite database."""
    return Jobs(sqlite_database)
