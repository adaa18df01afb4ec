"""The scrub reads a file again only after its interval."""

from __future__ import annotations

import threading
from pathlib import Path

from sqlalchemy import update

from jobs.database import Database, now_ms
from jobs.models import Checkpoint
from jobs.settings import Settings
from tests.worker.test_delivery import Spool, deliver_all
from worker.scrub import Scrub

_DAY_MS = 86_400_000


def test_a_file_is_read_again_after_the_interval_only(sqlite_database: Database, tmp_path: Path) -> None:
    spool = Spool(sqlite_database, tmp_path)
    spool.write_checkpoint(5, b"weights")
    deliver_all(spool.delivery())
    settings = Settings(data_dir=tmp_path / "data", scrub_days=1, scrub_mib_per_second=100)
    scrub, stop = Scrub(sqlite_database, spool.storage, settings), threading.Event()

    assert not scrub.step(stop), "the worker has read it when it was stored"
    older = update(Checkpoint).values(checked_at=now_ms() - _DAY_MS - 1000)
    sqlite_database.write(lambda session: session.execute(older))

    assert scrub.step(stop)
    assert not scrub.step(stop)
