"""A running server that the command line talks to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.database import Database
from tests.api.served import Served
from tests.jobs import rows
from wcl_client import output


@pytest.fixture
def server(sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """With the digits; its address and key are in the environment, and tables are wide enough for every column."""
    rows.add_dataset(sqlite_database)
    served = Served(sqlite_database, tmp_path / "data")
    served.start()
    monkeypatch.setenv("WCL_URL", served.url)
    monkeypatch.setenv("WCL_KEY", served.key())
    monkeypatch.setattr(output.out, "_width", 200)
    yield served
    served.stop()
