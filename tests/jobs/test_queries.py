"""Lists, pages, filters and cursors; hostile text matches nothing and breaks nothing."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from jobs import changes, checkpoints, queries, submission
from jobs.database import Database
from jobs.errors import Invalid, NotFound
from jobs.events import record
from jobs.models import Checkpoint, Worker
from jobs.status import Status
from tests.jobs import rows
from tests.jobs.rows import Run, claim, job_in, new_job, running, submit

HOSTILE = ["a\0b", "\ud800", "'; DROP TABLE jobs; --", "%", "_", "\\", "🏁" * 100, "x" * 10_000, "\u202e", " "]


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def listed(database: Database, **filters: Any) -> list[str]:
    with database.read() as session:
        return [job.id for job in queries.list_jobs(session, **filters).items]


# --- the list of jobs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_pages_bring_every_job_once_newest_first(database: Database, limit: int) -> None:
    submitted = [submit(database) for _ in range(7)]
    listed: list[str] = []
    cursor = None
    for _ in range(10):
        with database.read() as session:
            page = queries.list_jobs(session, cursor=cursor, limit=limit)
        assert len(page.items) <= limit
        listed += [job.id for job in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
        submit(database)  # a newer job does not shift the pages

    assert listed == submitted[::-1]


def test_filters_narrow_the_list(database: Database) -> None:
    first = submit(database, name="Alpha 100%", tags=("red", "small"))
    second = submit(database, kind="evaluate", name="beta_1", tags=("red",))
    third = job_in(database, Status.PAUSED)

    assert listed(database, status=["paused"]) == [third]
    assert listed(database, status=["queued", "paused"]) == [third, second, first]
    assert listed(database, status=["no such status"]) == []
    assert listed(database, kind="evaluate") == [second]
    assert listed(database, tag="red") == [second, first]
    assert listed(database, tag="re") == []
    assert listed(database, q="ALPHA") == [first]
    assert listed(database, q="100%") == [first]
    assert listed(database, q="a_1") == [second]
    assert listed(database, q="_") == [second]
    assert listed(database, q=third[:36].upper()) == [third]
    assert listed(database, q="digits") == [third, second, first]
    assert listed(database, tag="red", kind="pretrain", status=["queued"], q="alpha") == [first]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_a_filter_finds_nothing_and_breaks_nothing(database: Database, text: str) -> None:
    submit(database, name="plain", tags=("plain",))

    for name in ("kind", "tag", "q"):
        assert listed(database, **{name: text}) == []
    assert listed(database, status=[text, text]) == []
    assert len(listed(database)) == 1


@pytest.mark.parametrize("cursor", [*HOSTILE, "0" * 35, "a\0" * 18, "\ud800" * 36, "'" * 36, "🏁" * 36])
def test_an_unknown_cursor_is_refused_or_ends_the_list(database: Database, cursor: str) -> None:
    submit(database)

    if len(cursor) == 36:
        listed(database, cursor=cursor)
    else:
        with pytest.raises(Invalid, match="cursor"):
            listed(database, cursor=cursor)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_ids_are_not_found(database: Database, text: str) -> None:
    with database.read() as session:
        for read in (queries.get_job, queries.get_checkpoint, changes.now_cursor):
            with pytest.raises(NotFound):
                read(session, text)
        assert changes.marks(session, [text]) == {}
        for read_list in (queries.attempts, queries.checkpoints, queries.evaluations, queries.logs):
            assert read_list(session, text) == []
        assert queries.events_after(session, text, 0) == []
        assert queries.tags(session, [text]) == {text: []}


# --- rows of a job -------------------------------------------------------------------------------------------------


def test_events_come_in_order_after_a_number(database: Database) -> None:
    job_id = submit(database)
    for _ in range(3):
        database.write(lambda session: record(session, job_id, "changed", {}))

    with database.read() as session:
        assert [event.seq for event in queries.events_after(session, job_id, 1)] == [2, 3, 4]
        assert [event.seq for event in queries.events_after(session, job_id, 1, limit=2)] == [2, 3]
        for beyond in (4, 2**31, 10**18):
            assert queries.events_after(session, job_id, beyond) == []


def test_logs_page_over_attempts_and_begin_at_the_end(database: Database) -> None:
    run = Run(database, running(database))
    run.deliver(*(rows.log(f"1.{number}") for number in range(5)))
    run.end("drained")
    Run(database, claim(database)).deliver(*(rows.log(f"2.{number}") for number in range(5)))
    expected = [f"{attempt}.{number}" for attempt in (1, 2) for number in range(5)]

    with database.read() as session:
        assert [line.line for line in queries.logs(session, run.job_id)] == expected
        assert [line.line for line in queries.logs(session, run.job_id, limit=3)] == expected[-3:]
        lines: list[str] = []
        after = (0, 0)
        while page := queries.logs(session, run.job_id, after, limit=3):
            lines += [line.line for line in page]
            after = (page[-1].attempt, page[-1].seq)
        assert lines == expected
        for beyond in ((2, 10**18), (2**31, 0), (10**18, 0)):
            assert queries.logs(session, run.job_id, beyond) == []


def test_checkpoints_newest_first_without_deleted_ones(database: Database) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), *(rows.checkpoint(step) for step in (10, 30, 20)), rows.end("succeeded"))
    gone = rows.checkpoints(database, run.job_id)[2].id
    database.write(lambda session: checkpoints.delete(session, gone))

    with database.read() as session:
        assert [result.step for result in queries.checkpoints(session, run.job_id)] == [20, 10]
        with pytest.raises(NotFound):
            queries.get_checkpoint(session, gone)


def test_evaluations_of_a_jobs_checkpoints_are_its_own_too(database: Database) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), rows.checkpoint(1), rows.end("succeeded"))
    features = {"kind": "checkpoint", "checkpoint_id": rows.checkpoints(database, run.job_id)[0].id}
    measuring = Run(database, running(database, kind="evaluate", spec={"features": features}))
    measuring.deliver(rows.evaluation(0.75), rows.end("succeeded"))
    other = Run(database, running(database, kind="evaluate"))
    other.deliver(rows.evaluation(0.25))

    with database.read() as session:
        for job_id, value in ((run.job_id, 0.75), (measuring.job_id, 0.75), (other.job_id, 0.25)):
            assert [result.value for result in queries.evaluations(session, job_id)] == [value]


def test_counts_by_status_leave_out_ended_jobs(database: Database) -> None:
    job_in(database, Status.BLOCKED)  # it depends on a queued job
    for status in (Status.PAUSED, Status.CANCELLED, Status.CANCELLED):
        job_in(database, status)

    with database.read() as session:
        assert queries.counts_by_status(session) == {"blocked": 1, "queued": 1, "paused": 1}
        for most in (1, 0):
            expected = {"blocked": 1, "queued": 1, "paused": 1, "cancelled": 1}  # 1: there are any
            assert queries.bounded_counts(session, most) == expected


def test_live_workers_come_first(database: Database) -> None:
    def add(session: Any) -> None:
        for number, state in enumerate(("idle", "lost", "busy", "stopped")):
            facts = {"pool": "default", "gpus": 0, "pid": 1, "datasets": {}, "spec_versions": ["1"]}
            session.add(Worker(id=f"{number}", name=state, state=state, **facts))

    database.write(add)

    with database.read() as session:
        assert [worker.name for worker in queries.workers(session)] == ["busy", "idle", "stopped", "lost"]
        assert [worker.name for worker in queries.workers(session, alive_only=True)] == ["busy", "idle"]


def test_a_pinned_checkpoint_is_still_listed(database: Database) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), rows.checkpoint(1))
    database.write(lambda s: s.execute(update(Checkpoint).values(pinned=True)))

    with database.read() as session:
        assert queries.checkpoints(session, run.job_id)[0].pinned


def test_a_dry_run_names_the_workers_that_fit(database: Database) -> None:
    def add(session: Any) -> None:
        facts = {"gpus": 1, "pid": 1, "spec_versions": ["1"]}
        session.add(
            Worker(id="1", name="fits", pool="default", state="busy", datasets={"digits": rows.DIGEST}, **facts)
        )
        session.add(Worker(id="2", name="old data", pool="default", state="idle", datasets={"digits": "x"}, **facts))
        session.add(
            Worker(id="3", name="lost", pool="default", state="lost", datasets={"digits": rows.DIGEST}, **facts)
        )
        session.add(Worker(id="4", name="far", pool="big", state="idle", datasets={"digits": rows.DIGEST}, **facts))

    database.write(add)

    with database.read() as session:
        assert submission.plan(session, new_job(gpus=1))["workers"] == ["fits"]
        assert submission.plan(session, new_job(gpus=2))["workers"] == []
