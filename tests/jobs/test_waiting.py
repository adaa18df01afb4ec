"""Why a job waits, and its place in the queue."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from jobs import transitions, waiting, workers
from jobs.database import Database, now_ms
from jobs.models import Job
from jobs.status import Status
from jobs.waiting import Cause, Waiting
from tests.jobs import rows
from tests.jobs.rows import Run, claim, job, submit, worker


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def explain(database: Database, job_id: str) -> Waiting:
    with database.read() as session:
        result = waiting.explain(session, session.get_one(Job, job_id))
    assert result is not None
    return result


def register(database: Database, **changes: Any) -> str:
    facts = worker(**changes)
    database.write(lambda session: workers.register(session, facts, 1, []))
    return facts.id


@pytest.mark.parametrize("before", [Status.RUNNING, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED])
def test_a_running_or_ended_job_does_not_wait(database: Database, before: Status) -> None:
    job_id = rows.job_in(database, before)

    with database.read() as session:
        assert waiting.explain(session, session.get_one(Job, job_id)) is None


@pytest.mark.parametrize(
    ("fields", "facts", "cause", "words"),
    [
        ({}, None, Cause.NO_WORKER, "pool default"),
        ({}, {"pool": "other"}, Cause.NO_WORKER, "pool default"),
        ({"gpus": 4}, {"gpus": 2}, Cause.TOO_FEW_GPUS, "needs 4 GPUs; no worker of the pool default has more than 2"),
        (
            {},
            {"datasets": {"digits": "e" * 64}},
            Cause.DATASET_ABSENT,
            "pool default has this version",
        ),
        ({}, {"datasets": {}}, Cause.DATASET_ABSENT, "digits"),
        ({}, {"spec_versions": (2,)}, Cause.SPEC_VERSION_UNKNOWN, "version 1"),
        ({"gpus": 2}, {"gpus": 2}, Cause.ABOUT_TO_START, "idle worker"),
    ],
)
def test_the_requirement_that_no_worker_meets_is_named(
    database: Database, fields: dict[str, Any], facts: dict[str, Any] | None, cause: Cause, words: str
) -> None:
    if facts is not None:
        register(database, **facts)

    result = explain(database, submit(database, **fields))

    assert result.cause is cause
    assert result.position == (1 if cause in (Cause.NO_WORKER, Cause.ABOUT_TO_START) else None)
    assert result.can_start == (cause is Cause.ABOUT_TO_START)
    assert words in result.message


def test_one_worker_has_to_meet_all_requirements(database: Database) -> None:
    register(database, id="1", gpus=8, datasets={})
    register(database, id="2", gpus=0)

    result = explain(database, submit(database, gpus=8))

    assert result.cause == Cause.DATASET_ABSENT


def test_a_draining_worker_does_not_count(database: Database) -> None:
    worker_id = register(database)
    job_id = submit(database)
    assert explain(database, job_id).cause == Cause.ABOUT_TO_START

    database.write(lambda session: workers.drain(session, worker_id))

    why = explain(database, job_id)
    assert why.cause == Cause.WORKERS_DRAINING
    assert why.message.startswith("worker could run it, but drains and takes no further job")


@pytest.mark.parametrize(
    ("verb", "phase", "expected"),
    [
        ("cancel", "train", "cancelling: stopping the run"),
        ("cancel", "load", "cancelling: stopping the loading of data"),
        ("pause", "load", "pausing: stopping the loading of data"),
        ("pause", "train", "pausing: finishing a step, then saving"),
        ("limit", "train", "ending at its limit of 60 s: finishing a step, then saving"),
        ("drain", "save", "returning to the queue, because worker drains: saving the checkpoint"),
        (None, "train", None),
    ],
)
def test_a_pending_request_says_what_it_waits_for(
    database: Database, verb: str | None, phase: str, expected: str | None
) -> None:
    worker_id = register(database)
    run = Run(database, rows.running(database))
    run.deliver(rows.started(), rows.progress(1, phase=phase))
    if verb == "drain":
        database.write(lambda session: workers.drain(session, worker_id))
    elif verb == "limit":
        database.write(lambda session: session.execute(update(Job).values(max_seconds=60)))
        run.deliver(ran_ms=60_000)
    elif verb is not None:
        database.write(lambda session: getattr(transitions, verb)(session, run.job_id))

    with database.read() as session:
        assert waiting.pending(session, session.get_one(Job, run.job_id)) == expected


def test_a_pool_whose_workers_are_unable_says_why(database: Database) -> None:
    worker_id = register(database)
    job_id = submit(database)
    unable = workers.Unable("disk_full", "its disk has 1 MiB free")
    database.write(lambda session: workers.heartbeat(session, worker_id, None, unable))

    result = explain(database, job_id)

    assert result.cause == Cause.WORKERS_UNABLE
    assert result.message == "no worker of the pool default can take jobs; worker: its disk has 1 MiB free"


def test_the_place_in_the_queue_follows_priority_then_age(database: Database) -> None:
    register(database)
    rows.running(database)
    ids = [submit(database, priority=priority) for priority in (0, 5, 0, -1)]
    elsewhere = submit(database, pool="elsewhere", priority=9)
    backing_off = submit(database, priority=9)
    later = update(Job).where(Job.id == backing_off).values(not_before=now_ms() + 3_600_000)
    database.write(lambda session: session.execute(later))

    result = [explain(database, job_id) for job_id in ids]

    assert [each.position for each in result] == [2, 1, 3, 4]
    assert [each.cause for each in result] == [Cause.JOBS_AHEAD, Cause.WORKERS_BUSY, Cause.JOBS_AHEAD, Cause.JOBS_AHEAD]
    assert [each.message for each in result[2:]] == ["2 jobs are ahead of it", "3 jobs are ahead of it"]
    assert result[0].message == "1 job is ahead of it"
    assert explain(database, elsewhere).position == 1
    assert claim(database).job_id == ids[1], "the first job of the queue is claimed next"


def test_as_many_jobs_start_as_workers_are_idle(database: Database) -> None:
    for number in (1, 2):
        register(database, id=str(number))
    ids = [submit(database) for _ in range(3)]

    assert [explain(database, job_id).cause for job_id in ids] == [
        Cause.ABOUT_TO_START,
        Cause.ABOUT_TO_START,
        Cause.JOBS_AHEAD,
    ]


def test_a_job_that_waits_for_a_busy_cpu_says_which_job_ends_first(database: Database) -> None:
    register(database)
    first = submit(database, name="clothes")
    claim(database)
    job_id = submit(database)
    assert explain(database, job_id).message == "it is the next job; every worker that fits is busy", "no time yet"

    progress = update(Job).where(Job.id == first).values(progress={"eta_seconds": 1500.0})
    database.write(lambda session: session.execute(progress))

    busy = "it is the next job; every worker that fits is busy; clothes ends in about 25 min"
    assert explain(database, job_id).message == busy
    assert explain(database, submit(database)).message == "1 job is ahead of it; clothes ends in about 25 min"


@pytest.mark.parametrize(
    ("fields", "facts", "num_busy", "expected"),
    [
        ({"gpus": 0}, {"cpu_slots": 1}, 0, Cause.ABOUT_TO_START),
        ({"gpus": 0}, {"cpu_slots": 1}, 1, Cause.WORKERS_BUSY),
        ({"gpus": 0}, {"cpu_slots": 2}, 1, Cause.ABOUT_TO_START),
        ({"gpus": 1}, {}, 0, Cause.JOBS_AHEAD),  # the worker may keep its free GPUs for the larger job
    ],
)
def test_a_job_ahead_that_waits_for_other_devices_is_not_in_the_way(
    database: Database, fields: dict[str, Any], facts: dict[str, Any], num_busy: int, expected: Cause
) -> None:
    machine = worker(gpus=4, **facts)
    database.write(lambda session: workers.register(session, machine, 1, []))
    for gpus in (1, *[0] * num_busy):
        submit(database, gpus=gpus)
        claim(database, machine)
    assert explain(database, submit(database, gpus=4)).cause is Cause.WORKERS_BUSY

    result = explain(database, submit(database, **fields))

    assert (result.cause, result.position) == (expected, 2)
    if expected is Cause.WORKERS_BUSY:
        assert result.message == "every worker that fits is busy; the jobs ahead of it wait for something else"


@pytest.mark.parametrize("lacks", [{"dataset_digest": "e" * 64}, {"spec_version": 99}])
def test_a_job_ahead_that_no_worker_can_run_is_not_in_the_way(database: Database, lacks: dict[str, Any]) -> None:
    register(database)
    ahead = submit(database)
    database.write(lambda session: session.execute(update(Job).where(Job.id == ahead).values(**lacks)))

    result = explain(database, submit(database))

    assert (result.cause, result.position) == (Cause.ABOUT_TO_START, 2)


@pytest.mark.parametrize(("facts", "num_started"), [({}, 4), ({"takes_one": True}, 1)])
def test_as_many_jobs_start_as_devices_are_free(database: Database, facts: dict[str, Any], num_started: int) -> None:
    register(database, gpus=4, **facts)
    ids = [submit(database, gpus=1) for _ in range(5)]

    causes = [explain(database, job_id).cause for job_id in ids]

    assert causes == [Cause.ABOUT_TO_START] * num_started + [Cause.JOBS_AHEAD] * (5 - num_started)


def test_a_backing_off_job_has_the_end_of_its_backoff(database: Database) -> None:
    run = Run(database, rows.running(database))
    run.end("failed", "killed")

    result = explain(database, run.job_id)

    assert (result.cause, result.position) == (Cause.BACKING_OFF, None)
    assert result.until == job(database, run.job_id).not_before
    rows.make_due(database)
    assert explain(database, run.job_id).cause == Cause.NO_WORKER


def test_a_blocked_job_names_its_dependencies(database: Database) -> None:
    done, failing, other = (submit(database, name=name) for name in ("done", "failing", "other"))
    after = (done, failing, other)
    job_id = submit(database, after=after, after_checkpoint=frozenset({other}))
    Run(database, claim(database)).end("succeeded")

    result = explain(database, job_id)

    assert (result.cause, result.needs) == (Cause.DEPENDENCY, (failing, other))
    assert "the success of failing, which is queued" in result.message
    assert "the checkpoint of other" in result.message


def test_a_paused_job_has_the_cause_paused(database: Database) -> None:
    job_id = submit(database)
    database.write(lambda session: transitions.pause(session, job_id))

    assert explain(database, job_id).cause == Cause.PAUSED
