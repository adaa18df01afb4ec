"""Preemption: only preemptible jobs, only for a higher priority that fits, one at a time, and never in turns."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from jobs import preemption, transitions, workers
from jobs.database import Database
from jobs.eligibility import WorkerFacts
from jobs.models import Attempt, Job
from jobs.preemption import Preemption
from jobs.status import Status
from tests.jobs import rows
from tests.jobs.rows import Run, at_once, claim, job, status, submit, worker


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def register(database: Database, number: int = 1, **changes: Any) -> WorkerFacts:
    facts = worker(id=f"00000000-0000-7000-8000-{number:012}", name=f"worker-{number}", **changes)
    database.write(lambda session: workers.register(session, facts, number, []))
    return facts


def busy(database: Database, number: int = 1, facts: dict[str, Any] | None = None, **fields: Any) -> Run:
    """Start a job on a worker of its own."""
    where = register(database, number, **facts or {})
    job_id = submit(database, **{"preemptible": True} | fields)
    result = claim(database, where)
    assert result.job_id == job_id
    return Run(database, result)


def preempt(database: Database) -> Preemption | None:
    with database.read() as session:
        expected = preemption.choose(session)
    chosen = database.write(transitions.preempt)
    assert chosen == expected, "a look and the change that follows it agree"
    return chosen


def test_urgent_jobs_that_no_worker_can_hold_hide_no_other_one(database: Database) -> None:
    run = busy(database)
    for _ in range(110):
        submit(database, priority=2, gpus=3)
    urgent = submit(database, priority=1)

    assert preempt(database) == Preemption((run.job_id,), urgent)


def test_a_preemptible_job_is_preempted_and_resumes_later(database: Database) -> None:
    run = busy(database)
    urgent = submit(database, priority=1)

    assert preempt(database) == Preemption((run.job_id,), urgent)
    assert run.deliver(rows.started(), rows.checkpoint(7)).preempt
    run.deliver(rows.end("drained"))

    preempted = job(database, run.job_id)
    assert (preempted.status, preempted.status_reason, preempted.failures) == ("queued", "preempted", 0)
    assert preempted.preempt_requested_at is None
    assert [event.type for event in rows.events(database, run.job_id)][-2:] == ["checkpoint", "requeued"]
    requested = [event for event in rows.events(database, run.job_id) if event.type == "preempt_requested"]
    assert [event.data for event in requested] == [{"job": urgent}]
    taken = claim(database, worker(id="00000000-0000-7000-8000-000000000001"))
    assert taken.job_id == urgent
    Run(database, taken).end("succeeded")
    again = claim(database)
    assert (again.job_id, again.resume and again.resume.step) == (run.job_id, 7)


@pytest.mark.parametrize(
    ("running", "waiting"),
    [
        ({"preemptible": False}, {"priority": 9}),
        ({"priority": 1}, {"priority": 1}),
        ({"priority": 2}, {"priority": 1}),
        ({}, {"priority": 1, "pool": "other"}),
        ({}, {"priority": 1, "gpus": 1}),
    ],
)
def test_no_job_is_preempted_without_need(database: Database, running: dict[str, Any], waiting: dict[str, Any]) -> None:
    busy(database, **running)
    submit(database, **waiting)

    assert preempt(database) is None


def test_a_lower_priority_in_another_pool_preempts_no_equal_job(database: Database) -> None:
    busy(database, 1, facts={"pool": "other"}, pool="other", priority=0)
    busy(database, 2, priority=1)
    submit(database, priority=1)

    assert preempt(database) is None


@pytest.mark.parametrize(("free", "is_preempted"), [({}, False), ({"datasets": {}}, True), ({"pool": "other"}, True)])
def test_no_job_is_preempted_while_an_idle_worker_fits(
    database: Database, free: dict[str, Any], is_preempted: bool
) -> None:
    busy(database)
    register(database, 2, **free)
    submit(database, priority=1)

    assert (preempt(database) is not None) == is_preempted


@pytest.mark.parametrize("state", ["draining", "stopped"])
def test_a_worker_that_takes_no_jobs_is_not_freed(database: Database, state: str) -> None:
    busy(database)
    end = workers.drain if state == "draining" else workers.stop
    database.write(lambda session: end(session, "00000000-0000-7000-8000-000000000001"))
    submit(database, priority=1)

    assert preempt(database) is None


def test_a_preempted_job_preempts_no_other(database: Database) -> None:
    high, low = busy(database, 1, priority=5), busy(database, 2, priority=1)
    urgent = submit(database, priority=9)
    assert preempt(database) == Preemption((low.job_id,), urgent)
    low.end("drained")
    assert status(database, low.job_id) == Status.QUEUED
    database.write(lambda session: session.execute(update(Job).where(Job.id == low.job_id).values(priority=7)))
    claim(database, worker(id="00000000-0000-7000-8000-000000000002"))

    assert job(database, low.job_id).priority > job(database, high.job_id).priority
    assert preempt(database) is None


def test_one_job_is_preempted_at_a_time(database: Database) -> None:
    runs = [busy(database, number) for number in (1, 2)]
    for _ in range(2):
        submit(database, priority=1)
    first = preempt(database)
    assert first is not None

    assert preempt(database) is None
    next(run for run in runs if (run.job_id,) == first.job_ids).end("drained")
    claim(database, worker(id="00000000-0000-7000-8000-000000000001"))
    second = preempt(database)
    assert second is not None
    assert {*first.job_ids, *second.job_ids} == {run.job_id for run in runs}


def test_many_reconcilers_preempt_one_job(database: Database) -> None:
    for number in range(3):
        busy(database, number)
    for _ in range(3):
        submit(database, priority=1)

    chosen = at_once(6, lambda _: database.write(transitions.preempt))

    assert sum(each is not None for each in chosen) == 1


def test_of_the_lowest_priority_the_attempt_that_ran_shortest_is_preempted(database: Database) -> None:
    """The times of the starts say nothing, since clocks may step."""
    runs = [busy(database, number, priority=priority) for number, priority in enumerate((1, 0, 0, 1))]
    for place, run in enumerate(runs):
        run.ran_ms = 4000 - place
        run.send([])
        began = update(Attempt).where(run.attempt.is_row()).values(started_at=4000 - place)
        database.write(lambda session, began=began: session.execute(began))  # type: ignore[misc]
    urgent = submit(database, priority=2)

    assert preempt(database) == Preemption((runs[2].job_id,), urgent)


def test_a_cancel_wins_over_preemption(database: Database) -> None:
    run = busy(database)
    submit(database, priority=1)
    assert preempt(database)
    database.write(lambda session: transitions.cancel(session, run.job_id))

    run.end("drained")

    assert status(database, run.job_id) == Status.CANCELLED


def gpu_runs(database: Database, *sizes: tuple[int, int]) -> list[Run]:
    """Start a preemptible job for each (GPUs, priority) on one worker of eight devices."""
    facts = register(database, gpus=8)
    runs = []
    for place, (gpus, priority) in enumerate(sizes):
        submit(database, gpus=gpus, priority=priority, preemptible=True)
        run = Run(database, claim(database, facts))
        run.ran_ms = 1000 - place
        run.send([])
        runs.append(run)
    return runs


@pytest.mark.parametrize(
    ("gpus", "victims"),
    [
        (1, None),  # one device is free
        (2, [3]),  # the youngest of the lowest priority
        (3, [2]),  # one job of two devices, not two of one
        (4, [1]),  # one job, although two of lower priority would do
        (6, [1, 2]),
        (8, [0, 1, 2, 3]),
    ],
)
def test_as_few_jobs_as_suffice_give_way(database: Database, gpus: int, victims: list[int] | None) -> None:
    runs = gpu_runs(database, (1, 0), (3, 1), (2, 0), (1, 0))
    urgent = submit(database, priority=2, gpus=gpus)

    chosen = preempt(database)

    expected = victims and Preemption(tuple(sorted(runs[place].job_id for place in victims)), urgent)
    assert (chosen and Preemption(tuple(sorted(chosen.job_ids)), chosen.for_job_id)) == expected
    assert preempt(database) is None, "for one waiting job at a time"


def test_a_job_without_devices_frees_none(database: Database) -> None:
    facts = register(database, gpus=1)
    busy_slot = submit(database, gpus=0, preemptible=True)
    assert claim(database, facts).job_id == busy_slot
    submit(database, gpus=1)
    assert claim(database, facts).devices
    submit(database, priority=1, gpus=1)

    assert preempt(database) is None


def test_no_job_gives_way_in_vain(database: Database) -> None:
    """The worker would keep the devices for the job ahead, which needs more than any preemption frees there."""
    large, small = register(database, 1, gpus=4), register(database, 2, gpus=2)
    for facts, preemptible in ((large, False), (large, True), (small, True)):
        running = submit(database, gpus=2, preemptible=preemptible)
        taken = claim(database, facts)
        assert taken.job_id == running
        Run(database, taken).send([])
    submit(database, gpus=4, priority=2)
    behind = submit(database, gpus=2, priority=1)
    on_small = running

    assert preempt(database) == Preemption((on_small,), behind)
    database.write(lambda session: workers.drain(session, small.id))
    database.write(lambda session: session.execute(update(Job).values(preempt_requested_at=None)))
    assert preempt(database) is None


def test_no_job_gives_way_if_a_preempted_job_ahead_would_start_in_its_place(database: Database) -> None:
    first, second = busy(database, 1, priority=2), busy(database, 2)
    urgent = submit(database, priority=9)
    assert preempt(database) == Preemption((second.job_id,), urgent)
    second.end("drained")
    claim(database, worker(id="00000000-0000-7000-8000-000000000002"))
    raised = update(Job).where(Job.id == second.job_id).values(priority=4)
    database.write(lambda session: session.execute(raised))
    submit(database, priority=3)

    assert job(database, first.job_id).priority < 3, "it could give way"
    assert preempt(database) is None
