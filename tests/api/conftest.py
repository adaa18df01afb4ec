"""Servers for the tests of the web process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.database import Database
from tests import servers
from tests.api.served import Served
from tests.jobs import rows


@pytest.fixture
def served(database: Database, tmp_path: Path) -> Iterator[Served]:
    """Yield a server with one dataset, on both databases."""
    yield from _running(database, tmp_path)


@pytest.fixture
def small(sqlite_database: Database, tmp_path: Path) -> Iterator[Served]:
    """Yield a server with one dataset, where the database does not matter."""
    yield from _running(sqlite_database, tmp_path)


@pytest.fixture(scope="module")
def shared(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Yield one server for all tests of a module that accept rows of other tests."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copyfile(sqlite_template, folder / "wcl.sqlite3")
    database = servers.without_syncs(Database(f"sqlite:///{folder / 'wcl.sqlite3'}"))
    yield from _running(database, folder)
    database.dispose()


def _running(database: Database, tmp_path: Path) -> Iterator[Served]:
    rows.add_dataset(database)
    server = Served(database, tmp_path / "data")
    server.start()
    yield server
    server.stop()
