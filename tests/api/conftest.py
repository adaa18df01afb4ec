"""Servers for the tests of the web process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.database import Database
from tests.api.served import Served
from tests.jobs import rows


@pytest.fixture
def served(database: Database, tmp_path: Path) -> Iterator[Served]:
    """A server with one dataset, on both databases."""
    yield from _running(database, tmp_path)


@pytest.fixture
def small(sqlite_database: Database, tmp_path: Path) -> Iterator[Served]:
    """A server with one dataset, where the database does not matter."""
    yield from _running(sqlite_database, tmp_path)


def _running(database: Database, tmp_path: Path) -> Iterator[Served]:
    rows.add_dataset(database)
    server = Served(database, tmp_path / "data")
    server.start()
    yield server
    server.stop()
