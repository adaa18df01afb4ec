"""Devices of attempts: a claim takes them, the end of the attempt releases them, and no two attempts share one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from jobs import audit, transitions, workers
from jobs.database import Database, new_id
from jobs.devices import Free, by_attempt, free_of, in_use
from jobs.eligibility import WorkerFacts
from jobs.models import Attempt, AttemptDevice, Worker
from jobs.reconciler import Reconciler
from jobs.settings import Settings
from tests.jobs import rows
from tests.jobs.rows import Run, at_once, claim, job, submit, try_claim, worker

FOUR = worker(gpus=4)
UUIDS = tuple(device.uuid for device in FOUR.devices)


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)
    database.write(lambda session: workers.register(session, FOUR, 1, []))


def held(database: Database) -> set[str]:
    with database.read() as session:
        rows = session.execute(select(AttemptDevice.device).where(AttemptDevice.released_at.is_(None)))
        return set(rows.scalars())


def free(database: Database) -> Free:
    with database.read() as session:
        return free_of(session, session.execute(select(Worker)).scalars().all())[FOUR.id]


def test_a_claim_takes_as_many_free_devices_as_the_job_needs(database: Database) -> None:
    for gpus in (2, 1, 2, 0, 1):
        submit(database, gpus=gpus)

    claims = [claim(database, FOUR) for _ in range(4)]

    # The third job needs two devices and waits; the ones behind it fit.
    assert [each.devices for each in claims] == [UUIDS[:2], UUIDS[2:3], (), UUIDS[3:]]
    assert try_claim(database, FOUR) is None
    assert free(database) == Free((), 0)
    with database.read() as session:
        assert by_attempt(session, claims[0].job_id) == {1: list(UUIDS[:2])}
    claimed = rows.events(database, claims[0].job_id)[-1]
    assert claimed.data["devices"] == list(UUIDS[:2])


def test_of_many_devices_those_in_use_are_the_same(database: Database) -> None:
    submit(database, gpus=2)
    used = set(claim(database, FOUR).devices)
    others = {f"other-{number}" for number in range(1_000)}

    with database.read() as session:
        assert in_use(session, used | others) == in_use(session, used) == used
        assert in_use(session, others) == set()


def test_a_claim_takes_only_devices_that_its_worker_gives_out(database: Database) -> None:
    """A run that has ended in the database may still be about to exit."""
    submit(database, gpus=1)
    submit(database, gpus=0)
    a_claim: Callable[[Free], Any] = lambda free: database.write(lambda s: transitions.claim(s, FOUR, free))  # noqa: E731

    assert a_claim(Free((), 0)) is None
    assert a_claim(Free(UUIDS[2:], 0)).devices == UUIDS[2:3]
    assert a_claim(Free(UUIDS[3:], 1)).devices == ()


def test_a_job_gets_several_whole_gpus_or_one_mig_instance(database: Database) -> None:
    names = ("MIG-a", "GPU-b", "MIG-c", "GPU-d")
    devices = tuple(replace(each, uuid=uuid) for each, uuid in zip(FOUR.devices, names, strict=True))
    facts = replace(FOUR, id=new_id(), devices=devices)
    database.write(lambda session: workers.register(session, facts, 2, []))
    three, two, one, also_one = (submit(database, gpus=gpus) for gpus in (3, 2, 1, 1))

    claims = [claim(database, facts) for _ in range(3)]

    assert [(each.job_id, each.devices) for each in claims] == [
        (two, ("GPU-b", "GPU-d")),
        (one, ("MIG-a",)),
        (also_one, ("MIG-c",)),
    ]
    assert job(database, three).status == "queued"


ENDS: dict[str, Callable[[Database, Run], Any]] = {
    "end record": lambda database, run: run.deliver(rows.started(), rows.end("succeeded")),
    "supervisor": lambda database, run: run.end("failed", "killed"),
    "drain": lambda database, run: run.end("drained"),
    "reaped": lambda database, run: database.write(lambda session: transitions.reap(session, run.attempt, 0)),
}


@pytest.mark.parametrize("end", ENDS)
def test_every_end_of_an_attempt_releases_its_devices(database: Database, end: str) -> None:
    submit(database, gpus=4)
    run = Run(database, claim(database, FOUR))
    assert held(database) == set(UUIDS)

    ENDS[end](database, run)

    assert held(database) == set()
    assert free(database) == Free(UUIDS, 1)
    assert audit.audit(database).findings == []


def test_the_database_rejects_a_second_attempt_on_a_device(database: Database) -> None:
    for _ in range(2):
        submit(database, gpus=1)
    one, two = claim(database, FOUR), claim(database, FOUR)

    second = insert(AttemptDevice).values(job_id=two.job_id, attempt=1, device=one.devices[0], place=1)
    with pytest.raises(IntegrityError):
        database.write(lambda session: session.execute(second))

    Run(database, one).end("drained")
    database.write(lambda session: session.execute(second))


def twin(number: int) -> WorkerFacts:
    """Return a worker that announces the same devices, as after a restart or on a restored backup."""
    return worker(id=f"00000000-0000-7000-8000-{number:012}", devices=FOUR.devices)


def test_a_restarted_worker_takes_no_device_that_an_open_attempt_holds(database: Database) -> None:
    submit(database, gpus=3)
    before = Run(database, claim(database, FOUR))
    waiting = submit(database, gpus=2)

    assert try_claim(database, twin(1)) is None
    database.write(lambda session: transitions.reap(session, before.attempt, 0))
    taken = claim(database, twin(1))
    assert (taken.job_id, taken.devices) == (waiting, UUIDS[:2])


def test_workers_that_claim_one_device_at_once_get_it_once(database: Database) -> None:
    """The look at free devices of several transactions may come before the first commit."""
    for _ in range(6):
        submit(database, gpus=1)

    def attempt(number: int) -> tuple[str, ...]:
        try:
            result = try_claim(database, twin(number))
        except IntegrityError:
            return ()
        return result.devices if result else ()

    taken = [device for devices in at_once(6, attempt) for device in devices]

    assert len(taken) == len(set(taken)) > 0
    assert held(database) == set(taken)


def test_a_device_with_a_problem_is_not_offered(database: Database) -> None:
    submit(database, gpus=4)
    broken = tuple(workers.Device(**{**vars(each), "problem": "Xid 79"}) for each in FOUR.devices[:1])
    devices = broken + FOUR.devices[1:]
    database.write(lambda session: workers.heartbeat(session, FOUR.id, None, devices=devices))

    assert free(database) == Free(UUIDS[1:], 1)
    assert try_claim(database, worker(devices=devices)) is None
    with database.read() as session:
        assert session.get_one(Worker, FOUR.id).gpus == 3


def test_devices_of_an_attempt_that_an_older_version_ended_are_released(database: Database) -> None:
    submit(database, gpus=4)
    attempt = claim(database, FOUR).attempt
    database.write(lambda s: s.execute(update(Attempt).where(attempt.is_row()).values(ended_at=1)))
    assert "devices" in {finding.rule for finding in audit.audit(database).findings}

    Reconciler(database, Settings(), sends_wake_ups=False).poll()

    assert held(database) == set()


def test_a_worker_of_an_older_version_runs_one_attempt_at_a_time(database: Database) -> None:
    old = update(Worker).values(devices=None, cpu_slots=None, gpus=2)
    database.write(lambda session: session.execute(old))
    assert len(free(database).devices) == 2

    database.write(lambda session: workers.heartbeat(session, FOUR.id, "a job"))

    assert free(database) == Free((), 0)
