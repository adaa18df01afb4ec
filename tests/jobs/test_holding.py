"""Devices that a worker keeps for a large job, and what the waiting of a job for devices is said to be."""

from __future__ import annotations

import math

import pytest

from jobs import holding, transitions, waiting, workers
from jobs.database import Database
from jobs.devices import Free
from jobs.eligibility import WorkerFacts
from jobs.holding import PassedOver
from jobs.models import Job
from tests.jobs import rows
from tests.jobs.rows import Run, claim, submit, worker
from wcl_core.protocol import IMAGES_PER_SECOND


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def register(database: Database, number: int, gpus: int) -> WorkerFacts:
    facts = worker(id=f"00000000-0000-7000-8000-{number:012}", name=f"a-{number}", gpus=gpus)
    database.write(lambda session: workers.register(session, facts, number, []))
    return facts


def run(database: Database, facts: WorkerFacts, gpus: int = 1, eta: float | None = None) -> Run:
    """Start a job that reports that it needs `eta` further seconds."""
    submit(database, gpus=gpus, priority=9)
    result = Run(database, claim(database, facts))
    if eta is not None:
        result.deliver(rows.started(), rows.progress(1, eta_seconds=eta))
    return result


def look(database: Database, facts: WorkerFacts) -> PassedOver | None:
    with database.read() as session:
        return holding.passed_over(session, facts, transitions.unused(session, facts, None))


def claims(database: Database, facts: WorkerFacts, held: PassedOver | None) -> str | None:
    result = database.write(lambda session: transitions.claim(session, facts, None, held))
    return result.job_id if result else None


def test_a_worker_keeps_its_devices_for_a_large_job_but_not_from_jobs_that_end_before(database: Database) -> None:
    facts = register(database, 1, gpus=4)
    run(database, facts, gpus=1, eta=300)
    run(database, facts, gpus=1)
    large = submit(database, gpus=3)
    small = submit(database, gpus=1)
    ahead = submit(database, gpus=1, priority=1)
    brief = submit(database, gpus=1, max_seconds=299)
    submit(database, gpus=1, max_seconds=301)
    cpu = submit(database, gpus=0)

    held = look(database, facts)

    assert held is not None
    assert (held.job_id, held.is_here, held.is_urgent, held.seconds) == (large, True, False, 300)
    assert [claims(database, facts, held) for _ in range(3)] == [ahead, brief, cpu]
    assert claims(database, facts, held) is None
    assert claims(database, facts, None) is None, "no device is left"
    assert small != large


def test_a_worker_keeps_a_device_while_the_run_on_another_one_has_yet_to_exit(database: Database) -> None:
    """The large job could start by the database, but the worker does not give the other device out yet."""
    facts = register(database, 1, gpus=2)
    large = submit(database, gpus=2)

    with database.read() as session:
        held = holding.passed_over(session, facts, Free(facts.all_free.devices[:1], 0))

    assert held is not None
    assert (held.job_id, held.is_here) == (large, True)


def test_many_jobs_that_have_to_wait_hide_none_that_may_start(database: Database) -> None:
    facts = register(database, 1, gpus=2)
    run(database, facts, gpus=1, eta=300)
    submit(database, gpus=2)
    for _ in range(25):
        submit(database, gpus=1)
    cpu, brief = submit(database, gpus=0), submit(database, gpus=1, max_seconds=299)

    assert {claims(database, facts, look(database, facts)) for _ in range(2)} == {cpu, brief}


def test_an_unknown_end_lets_no_job_pass(database: Database) -> None:
    facts = register(database, 1, gpus=2)
    first = run(database, facts, gpus=1)
    large = submit(database, gpus=2)
    small = submit(database, gpus=1, max_seconds=1)
    held = look(database, facts)

    assert held is not None
    assert held.seconds == math.inf
    assert claims(database, facts, held) is None
    first.end("succeeded")
    assert look(database, facts) is None, "it fits now"
    assert claims(database, facts, held) == large
    assert small != large


def test_a_short_job_is_known_by_a_similar_one_that_has_succeeded(database: Database) -> None:
    facts = register(database, 1, gpus=2)
    submit(database, gpus=1)
    similar = Run(database, claim(database, facts))
    similar.deliver(rows.started(), rows.metrics(1, **{IMAGES_PER_SECOND: 1e5}), rows.end("succeeded"))
    run(database, facts, gpus=1, eta=3600)
    submit(database, gpus=2)
    small = submit(database, gpus=1)

    assert claims(database, facts, look(database, facts)) == small


def test_of_several_workers_the_closest_one_keeps_its_devices(database: Database) -> None:
    one, two, three = register(database, 1, gpus=4), register(database, 2, gpus=4), register(database, 3, gpus=1)
    run(database, one, gpus=3)
    run(database, two, gpus=2)
    submit(database, gpus=4)

    looks = [look(database, facts) for facts in (one, two)]

    assert [each and each.is_here for each in looks] == [False, True]
    assert look(database, three) is None


def test_devices_of_jobs_that_give_way_are_kept_at_once(database: Database) -> None:
    facts = register(database, 1, gpus=2)
    for _ in range(2):
        submit(database, gpus=1, preemptible=True)
    runs = [Run(database, claim(database, facts)) for _ in range(2)]
    urgent = submit(database, gpus=2, priority=1)
    chosen = database.write(transitions.preempt)
    assert chosen is not None
    assert set(chosen.job_ids) == {each.job_id for each in runs}
    with database.read() as session:
        why = waiting.explain(session, session.get_one(Job, urgent))
        requests = [waiting.pending(session, session.get_one(Job, each.job_id)) for each in runs]
    assert (why and why.cause, why and why.position) == ("preempting", 1)
    assert why
    assert "give way to it" in why.message
    assert requests == ["giving way to a job of higher priority: stopping the run"] * 2
    runs[0].end("drained")

    held = look(database, facts)

    assert held is not None
    assert held.is_urgent
    assert claims(database, facts, held) is None, "the preempted job would take the device back"
    runs[1].end("drained")
    assert claims(database, facts, None) == urgent


@pytest.mark.parametrize(
    ("gpus", "etas", "expected"),
    [
        (2, (2400, 9000), "it waits for 2 free GPUs on one machine; a-2 has 1, the next comes free in about 40 min;"),
        (
            2,
            (None, None),
            "it waits for 2 free GPUs on one machine; a-2 has 1, and when the next comes free is not known",
        ),
        (
            2,
            (20, None),
            "it waits for 2 free GPUs on one machine; a-2 has 1, the next comes free in less than a minute;",
        ),
        (
            3,
            (None, 9000),
            "it waits for 3 free GPUs on one machine; a-2 has 1, the next comes free in about 2 h or sooner",
        ),
    ],
)
def test_a_job_that_waits_for_devices_says_which_and_when(
    database: Database, gpus: int, etas: tuple[float | None, ...], expected: str
) -> None:
    run(database, register(database, 1, gpus=3), gpus=3)
    facts = register(database, 2, gpus=3)
    for eta in etas:
        run(database, facts, gpus=1, eta=eta)
    job_id = submit(database, gpus=gpus)

    with database.read() as session:
        result = waiting.explain(session, session.get_one(Job, job_id))

    assert result is not None
    assert result.message.startswith(expected)
    following = "a-1 has none, and when the next comes free is not known yet"
    assert result.message.endswith(f"; {following}"), "the other worker that could hold it"
