"""Whether a worker can take jobs: the first reason counts, and a check that hangs is one."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from jobs.workers import Unable
from tests.waiting import eventually
from worker import ability
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
    assert eventually(lambda: worker.check() is None, "the end", 10)


def test_an_error_of_a_check_reaches_the_caller() -> None:
    def fail() -> None:
        raise ConnectionError("the database")

    worker = Ability(fail)

    for _ in range(2):
        with pytest.raises(ConnectionError):
            worker.check()
