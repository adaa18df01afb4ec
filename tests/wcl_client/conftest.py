"""A running server for tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer.testing
from typer.main import get_command

from jobs.database import Database
from tests.api.served import Served
from tests.jobs import rows
from wcl_client import terminal

# `CliRunner` makes all commands anew for each call, which takes longer than most calls.
typer.testing._get_command = cache(get_command)  # type: ignore[attr-defined]


@pytest.fixture
def server(sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Serve the digits dataset; the environment names the server, and tables show all columns."""
    rows.add_dataset(sqlite_database)
    served = Served(sqlite_database, tmp_path / "data")
    served.start()
    monkeypatch.setenv("WCL_URL", served.url)
    monkeypatch.setenv("WCL_KEY", served.key())
    monkeypatch.setattr(terminal.out._console, "_width", 200)
    yield served
    served.stop()
