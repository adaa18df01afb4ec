"""Whether a worker can take jobs: the first reason counts, and a check that hangs is one; it needs its own schema."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import select, text

from jobs import schema
from jobs.database import Database
from jobs.models import Worker
from jobs.settings import Settings
from jobs.workers import Unable
from tests.waiting import eventually
from tests.worker.running import RunningWorker
from worker import ability
from worker.__main__ import _wait_for_schema
from worker.ability import Ability

FULL = Unable("disk_full", "the disk is full")
AWAY = Unable("storage_unavailable", "the folder is not mounted")


def test_the_first_reason_counts_and_changes_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "worker.ability")
    reasons: dict[str, Unable | None] = {"room": None, "storage": None}
    worker = Ability(lambda: reasons["room"], lambda: reasons["storage"])
    assert worker.check() is worker.unable is None

    reasons["storage"] = AWAY
    assert [worker.check() for _ in range(3)] == [AWAY] * 3
    reasons["room"] = FULL
    assert worker.check() == worker.unable == FULL
    reasons.update(room=None, storage=None)
    assert [worker.check() for _ in range(2)] == [None, None]

    assert [record.getMessage() for record in caplog.records] == [
        "this worker takes no jobs: the folder is not mounted",
        "this worker takes no jobs: the disk is full",
        "this worker takes jobs again",
    ]


def test_a_check_that_hangs_makes_the_worker_unable_and_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ability, "_CHECK_SECONDS", 0.2)
    release, started = threading.Event(), []

    def check() -> None:
        started.append(1)
        release.wait(20)

    worker = Ability(check)
    first = worker.check()
    began = time.monotonic()
    later = [worker.check() for _ in range(50)]

    assert time.monotonic() - began < 5
    assert first is not None
    assert first.reason == "storage_unavailable"
    assert later == [first] * 50
    assert len(started) == 1, "no thread is left behind for each try"
    release.set()
    assert eventually(lambda: worker.check() is None, "the end")


def test_an_error_of_a_check_reaches_the_caller() -> None:
    def fail() -> None:
        raise ConnectionError("the database")

    worker = Ability(fail)

    for _ in range(2):
        with pytest.raises(ConnectionError):
            worker.check()


def test_a_worker_without_a_database_says_so_and_makes_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings, stop = Settings(data_dir=tmp_path), threading.Event()
    database = Database(settings.resolved_database_url)
    waiting = threading.Thread(target=_wait_for_schema, args=(database, settings, stop))
    waiting.start()

    eventually(lambda: any(f"there is no database in {tmp_path}" in each for each in caplog.messages))

    stop.set()
    waiting.join()
    database.dispose()
    assert list(tmp_path.iterdir()) == []


def test_a_worker_waits_for_the_upgrade_of_an_older_schema(
    sqlite_database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(data_dir=tmp_path)  # its database is that of the test
    newest = schema.newest()
    set_version(sqlite_database, "0001")
    waiting = threading.Thread(target=_wait_for_schema, args=(sqlite_database, settings, threading.Event()))
    waiting.start()
    expected = (
        f"this worker waits: the database has an older schema (0001), and this version needs {newest}; "
        "run `python -m jobs migrate`"
    )
    eventually(lambda: expected in caplog.messages)
    assert waiting.is_alive()
    set_version(sqlite_database, newest)
    waiting.join()
    assert caplog.messages.count(expected) == 1


@pytest.mark.process
def test_a_worker_refuses_a_newer_schema_in_one_line(sqlite_database: Database, tmp_path: Path) -> None:
    set_version(sqlite_database, "9999")
    worker = RunningWorker(sqlite_database, tmp_path / "data").start()
    try:
        assert worker.wait(60) == os.EX_CONFIG
    finally:
        worker.send(signal.SIGKILL)  # nothing if it has ended
    (line,) = [line for line in worker.whole_log().splitlines() if line.startswith("error: ")]
    assert "Traceback" not in worker.whole_log()
    assert f"its schema is 9999, and this version knows {schema.newest()}" in line
    with sqlite_database.read() as session:
        assert session.execute(select(Worker)).first() is None


def set_version(database: Database, revision: str) -> None:
    statement = text("UPDATE alembic_version SET version_num = :revision")
    database.write(lambda session: session.execute(statement, {"revision": revision}) and None)
