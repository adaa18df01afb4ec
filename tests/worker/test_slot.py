"""The slot: no claim before it is open, and none while the worker drains or is unable."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import pytest

from jobs import workers
from jobs.database import Database
from jobs.settings import Settings
from jobs.status import Reason
from jobs.transitions import Claim
from jobs.workers import Unable
from tests.jobs import rows
from worker.ability import Ability
from worker.room import RoomCheck
from worker.slot import Slot
from worker.supervisor import Supervisor


class Claims:
    """A supervisor that only notes the claims, whose attempts stay open."""

    def __init__(self) -> None:
        self.jobs: list[str] = []

    def supervise(self, claim: Claim) -> None:
        self.jobs.append(claim.job_id)


def make_slot(database: Database, data_dir: Path, *checks: Any) -> tuple[Slot, Claims, threading.Event]:
    claims, draining = Claims(), threading.Event()
    rows.add_dataset(database)
    database.write(lambda session: workers.register(session, rows.WORKER, 1, []))
    room = RoomCheck(Settings(data_dir=data_dir))
    slot = Slot(database, rows.WORKER, cast(Supervisor, claims), draining, Ability(*checks), room)
    return slot, claims, draining


def test_a_wake_up_before_the_slot_is_open_claims_nothing(sqlite_database: Database, tmp_path: Path) -> None:
    """A run of an earlier worker of this host may still be alive."""
    slot, claims, _ = make_slot(sqlite_database, tmp_path)
    job_id = rows.submit(sqlite_database)

    slot.work()
    assert claims.jobs == []
    slot.open()
    slot.work()

    assert claims.jobs == [job_id]


@pytest.mark.parametrize("obstacle", ["drains", "unable"])
def test_a_worker_that_drains_or_is_unable_claims_nothing(
    sqlite_database: Database, tmp_path: Path, obstacle: str
) -> None:
    unable = Unable(Reason.DISK_FULL, "full") if obstacle == "unable" else None
    slot, claims, draining = make_slot(sqlite_database, tmp_path, lambda: unable)
    job_id = rows.submit(sqlite_database)
    slot.open()
    if obstacle == "drains":
        draining.set()

    slot.work()

    assert claims.jobs == []
    assert rows.status(sqlite_database, job_id) == "queued"
