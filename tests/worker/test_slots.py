"""The slots: as many attempts at once as devices and CPU slots hold, none before they are open or while draining."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import event

from jobs import transitions, workers
from jobs.database import Database
from jobs.errors import Superseded
from jobs.models import Worker
from jobs.settings import Settings
from jobs.status import Reason
from jobs.transitions import Claim
from jobs.workers import Unable
from tests.jobs import rows
from tests.jobs.rows import Run
from tests.waiting import PATIENCE, eventually
from worker.ability import Ability
from worker.devices import Machine
from worker.room import RoomCheck
from worker.slots import Slots
from worker.supervisor import Supervisor


class Attempts:
    """A supervisor that only keeps its attempts open, each until the test ends it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.claims: list[Claim] = []
        self._ends: dict[str, threading.Event] = {}
        self.how: dict[str, tuple[str, ...]] = {}  # the arguments of other ends
        self.faults_of_jobs: set[str] = set()  # jobs whose attempts end for a fault of their own files
        self.most = 0  # attempts at once

    @property
    def jobs(self) -> list[str]:
        return [claim.job_id for claim in self.claims]

    def supervise(self, claim: Claim) -> bool:
        end = self._ends[claim.job_id] = threading.Event()
        self.claims.append(claim)
        self.most = max(self.most, sum(not each.is_set() for each in self._ends.values()))
        assert end.wait(PATIENCE)
        with suppress(Superseded):
            Run(self._database, claim).end(*self.how.get(claim.job_id, ("succeeded",)))
        return claim.job_id in self.faults_of_jobs

    def end(self, job_id: str) -> None:
        self._ends[job_id].set()


def make_slots(
    database: Database,
    data_dir: Path,
    *checks: Any,
    gpus: int = 0,
    cpu_slots: int = 1,
    clock: Any = time.monotonic,
    address: str | None = None,
    room: RoomCheck | None = None,
    **options: Any,
) -> tuple[Slots, Attempts, threading.Event]:
    attempts, draining = Attempts(database), threading.Event()
    rows.add_dataset(database)
    devices = rows.devices(gpus, str(data_dir))
    facts = rows.worker(devices=devices, cpu_slots=cpu_slots, address=address)
    database.write(lambda session: workers.register(session, facts, 1, []))
    room = room or RoomCheck(Settings(data_dir=data_dir))
    machine = Machine(lambda: devices, cpu_slots, dict.fromkeys((each.uuid for each in devices), ""))
    supervisor, ability = cast(Supervisor, attempts), Ability(*checks)
    slots = Slots(database, facts, supervisor, draining, ability, room, machine, 60, clock, **options)
    return slots, attempts, draining


def test_a_wake_up_before_the_slots_are_open_claims_nothing(sqlite_database: Database, tmp_path: Path) -> None:
    """A run of an earlier worker of this host may still be alive."""
    slots, attempts, _ = make_slots(sqlite_database, tmp_path)
    job_id = rows.submit(sqlite_database)

    slots.work()
    assert attempts.jobs == []
    slots.open()
    slots.work()

    eventually(lambda: attempts.jobs == [job_id], "the claim")
    attempts.end(job_id)
    slots.wait(PATIENCE)


def test_a_poll_while_no_job_waits_is_one_message_to_the_database(database: Database, tmp_path: Path) -> None:
    slots, _, _ = make_slots(database, tmp_path, gpus=2, address="10.0.0.2")
    slots.open()
    rows.submit(database, pool="other")
    messages: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: messages.append(args[2]))

    assert not slots.has_work()
    assert len(messages) == 1
    rows.submit(database, gpus=2)
    assert slots.has_work()


@pytest.mark.parametrize("obstacle", ["drains", "unable"])
def test_a_worker_that_drains_or_is_unable_claims_nothing(
    sqlite_database: Database, tmp_path: Path, obstacle: str
) -> None:
    unable = Unable(Reason.DISK_FULL, "full") if obstacle == "unable" else None
    slots, attempts, draining = make_slots(sqlite_database, tmp_path, lambda: unable)
    job_id = rows.submit(sqlite_database)
    slots.open()
    if obstacle == "drains":
        draining.set()

    slots.work()

    assert attempts.jobs == []
    assert rows.status(sqlite_database, job_id) == "queued"


@pytest.mark.parametrize("is_of_job", [True, False])
def test_a_fault_of_the_files_of_one_job_makes_no_pause(
    sqlite_database: Database, tmp_path: Path, is_of_job: bool
) -> None:
    room = RoomCheck(Settings(data_dir=tmp_path))
    slots, attempts, _ = make_slots(sqlite_database, tmp_path, room, room=room)
    ids = [rows.submit(sqlite_database) for _ in range(2)]
    attempts.how[ids[0]] = ("failed", Reason.STORAGE_UNAVAILABLE, "none of its files is there")
    attempts.faults_of_jobs |= {ids[0]} if is_of_job else set()
    slots.open()

    slots.work()
    eventually(lambda: attempts.jobs == ids[:1], "the claim")
    attempts.end(ids[0])

    if not is_of_job:
        eventually(lambda: slots.ability.unable, "the pause")
        return
    eventually(lambda: attempts.jobs == ids, "the claim of the next job")
    attempts.end(ids[1])
    slots.wait(30)
    assert rows.status(sqlite_database, ids[0]) == "paused"


def test_a_job_whose_dataset_is_absent_is_not_claimed(sqlite_database: Database, tmp_path: Path) -> None:
    absent: set[str] = set()
    slots, attempts, _ = make_slots(sqlite_database, tmp_path, absent=lambda: absent)
    job_id = rows.submit(sqlite_database)
    absent.add("digits")
    slots.open()

    slots.work()
    assert not slots.has_work()
    assert attempts.jobs == []
    absent.clear()
    slots.work()

    eventually(lambda: attempts.jobs == [job_id], "the claim")
    attempts.end(job_id)
    slots.wait(30)


def test_attempts_run_at_once_until_devices_and_cpu_slots_are_in_use(sqlite_database: Database, tmp_path: Path) -> None:
    slots, attempts, _ = make_slots(sqlite_database, tmp_path, gpus=4, cpu_slots=2)
    ids = [rows.submit(sqlite_database, gpus=gpus) for gpus in (2, 1, 0, 2, 1, 0, 0)]
    slots.open()

    slots.work()
    eventually(lambda: len(attempts.claims) == 5, "five claims")
    assert set(attempts.jobs) == {ids[place] for place in (0, 1, 2, 4, 5)}
    devices = [device for claim in attempts.claims for device in claim.devices]
    assert len(devices) == len(set(devices)) == 4
    assert slots.free().is_empty
    assert not slots.has_work()
    assert slots.job_id == ids[0]

    for job_id in (ids[2], ids[1], ids[0]):  # the end of an attempt claims the next job without a wake-up
        attempts.end(job_id)
    eventually(lambda: len(attempts.claims) == 7, "all claims")
    for job_id in ids:
        if job_id not in (ids[0], ids[1], ids[2]):
            attempts.end(job_id)
    slots.wait(PATIENCE)
    assert {rows.status(sqlite_database, job_id) for job_id in ids} == {"succeeded"}


def test_without_devices_a_worker_runs_one_job_at_a_time(sqlite_database: Database, tmp_path: Path) -> None:
    slots, attempts, _ = make_slots(sqlite_database, tmp_path)
    ids = [rows.submit(sqlite_database) for _ in range(2)]
    slots.open()

    for job_id in ids:
        slots.work()
        eventually(lambda job_id=job_id: attempts.jobs[-1:] == [job_id], "the claim")  # type: ignore[misc]
        attempts.end(job_id)
    slots.wait(PATIENCE)

    assert attempts.most == 1


def test_a_worker_for_one_job_waits_for_the_dataset_of_a_job_only(sqlite_database: Database, tmp_path: Path) -> None:
    slots, attempts, _ = make_slots(sqlite_database, tmp_path)
    slots.open()
    assert not slots.work_once(lambda: False)
    looks = iter([True, False])
    ran: list[bool] = []

    def is_awaited() -> bool:
        if is_it := next(looks):
            rows.submit(sqlite_database)  # as if its dataset were ready now
        return is_it

    thread = threading.Thread(target=lambda: ran.append(slots.work_once(is_awaited)))
    thread.start()
    eventually(lambda: attempts.jobs, "the claim")
    attempts.end(attempts.jobs[0])
    thread.join()
    assert ran == [True]


def test_the_dataset_of_a_job_that_ends_for_bad_data_is_named(sqlite_database: Database, tmp_path: Path) -> None:
    names: list[str] = []
    slots, attempts, _ = make_slots(sqlite_database, tmp_path, on_bad_data=names.append)
    slots.open()
    for end in (("succeeded",), ("failed", "bad_data", "changed")):
        job_id = rows.submit(sqlite_database)
        attempts.how[job_id] = end
        slots.work()
        eventually(lambda job_id=job_id: attempts.jobs[-1:] == [job_id], "the claim")  # type: ignore[misc]
        attempts.end(job_id)
        slots.wait(PATIENCE)
    eventually(lambda: names, "the look at the end")
    assert names == ["digits"]


def test_a_device_is_given_out_again_once_its_run_has_exited(sqlite_database: Database, tmp_path: Path) -> None:
    """The attempt ends in the database before the run has exited."""
    slots, attempts, _ = make_slots(sqlite_database, tmp_path, gpus=1, cpu_slots=0)
    first = rows.submit(sqlite_database, gpus=1)
    slots.open()
    slots.work()
    eventually(lambda: attempts.jobs == [first], "the claim")
    sqlite_database.write(lambda session: transitions.end_attempt(session, attempts.claims[0].attempt, "drained"))

    assert not slots.has_work()

    attempts.end(first)
    eventually(lambda: attempts.jobs == [first, first], "the next claim")
    assert attempts.claims[1].devices == attempts.claims[0].devices
    attempts.end(first)
    slots.wait(PATIENCE)


@pytest.mark.slow
def test_a_worker_announces_what_it_keeps_its_devices_for_and_takes_that_back(
    sqlite_database: Database, tmp_path: Path
) -> None:
    """A gang that another worker starts then takes none of these devices."""
    now, database = [0.0], sqlite_database
    slots, attempts, _ = make_slots(database, tmp_path, gpus=4, clock=lambda: now[0], address="10.0.0.2")
    leader = rows.worker(id="00000000-0000-7000-8000-000000000001", name="leader", gpus=1, address="10.0.0.1")
    database.write(lambda session: workers.register(session, leader, 1, []))
    database.write(lambda session: workers.heartbeat(session, leader.id, None, address=leader.address))
    database.write(lambda session: workers.heartbeat(session, rows.WORKER.id, None, address="10.0.0.2"))
    first = rows.submit(database, gpus=1)
    slots.open()
    slots.work()
    eventually(lambda: attempts.jobs == [first], "the claim")
    large = rows.submit(database, gpus=4)
    assert not slots.has_work()
    now[0] = 61
    assert not slots.has_work()
    gang = rows.submit(database, spec={"nodes": 2, "batch_size": 240}, gpus=1)

    assert rows.try_claim(database, leader) is None
    rows.submit(database, gpus=1, priority=1)
    others = [rows.submit(database, gpus=1, priority=1) for _ in range(2)]
    slots.work()
    eventually(lambda: len(attempts.jobs) == 4, "the claims of jobs before it")
    attempts.end(others[0])  # also a device that has been in use
    eventually(lambda: len(slots.free().devices) == 1, "its end")
    assert rows.try_claim(database, leader) is None

    database.write(lambda session: transitions.cancel(session, large))
    slots.has_work()
    with database.read() as session:
        assert session.get_one(Worker, rows.WORKER.id).kept_for is None
    assert rows.claim(database, leader).job_id == gang
    for job_id in attempts.jobs:
        attempts.end(job_id)
    slots.work()
    eventually(lambda: gang in attempts.jobs, "the node of the gang")
    attempts.end(gang)
    slots.wait(PATIENCE)


def test_smaller_jobs_pass_a_large_one_for_a_while_only(sqlite_database: Database, tmp_path: Path) -> None:
    now = [0.0]
    slots, attempts, _ = make_slots(sqlite_database, tmp_path, gpus=2, clock=lambda: now[0])
    first, large, *small = [rows.submit(sqlite_database, gpus=gpus) for gpus in (1, 2, 1, 1)]
    slots.open()
    slots.work()
    eventually(lambda: attempts.jobs == [first, small[0]], "the claim of a job that passes")
    now[0] = 61  # by the worker's clock, since it first passed over the large job
    attempts.end(small[0])
    eventually(
        lambda: rows.status(sqlite_database, small[0]) == "succeeded" and len(slots.free().devices) == 1, "its end"
    )
    assert not slots.has_work()

    attempts.end(first)
    eventually(lambda: attempts.jobs[2:] == [large], "the claim of the large job")
    for job_id in (large, small[1]):
        eventually(lambda job_id=job_id: job_id in attempts.jobs, "the claim")  # type: ignore[misc]
        attempts.end(job_id)
    slots.wait(PATIENCE)
