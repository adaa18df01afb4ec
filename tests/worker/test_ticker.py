"""When the ticker sleeps; what it does while a worker runs is tested with workers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from jobs.database import Database
from jobs.settings import Settings
from worker.ticker import Ticker


@pytest.mark.parametrize(("folder", "until"), [("absent", math.inf), (".", 0.0)])
def test_a_ticker_ticks_always_where_no_write_is_noticed(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, until: float
) -> None:
    unused: Any = None
    ticker = Ticker(sqlite_database, Settings(data_dir=tmp_path / folder), "worker", unused, lambda: None)
    monkeypatch.setattr("worker.ticker.os.read", lambda *_: b"")  # the end of the events

    ticker._notice_writes()

    assert (ticker._ticks_until == math.inf) == (until == math.inf)
