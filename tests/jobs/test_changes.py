"""Changes after a cursor: each one once, in parts, up to a given cursor."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from jobs import changes, submission, transitions, workers
from jobs.changes import START, Changes, Cursor
from jobs.database import Database
from jobs.errors import Invalid
from jobs.models import Job
from tests.jobs import rows
from tests.jobs.rows import Run, running, submit
from tests.jobs.test_queries import HOSTILE

BIG = 999_999_999


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def now(database: Database, job_id: str) -> Cursor:
    with database.read() as session:
        return changes.now_cursor(session, job_id)


def since(database: Database, job_id: str, after: Cursor, until: Cursor | None = None, limit: int = 2_000) -> Changes:
    with database.read() as session:
        return changes.changes(session, job_id, after, until or changes.now_cursor(session, job_id), limit)


@pytest.mark.parametrize("cursor", [START, Cursor(3, 1, 250, 1, 7), Cursor(BIG, BIG, BIG, BIG, BIG)])
def test_a_cursor_survives_its_text(cursor: Cursor) -> None:
    assert Cursor.parse(str(cursor)) == cursor


def test_a_cursor_of_an_older_server_is_accepted() -> None:
    assert Cursor.parse("3.1.250") == Cursor(3, 1, 250, 0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "1.2",
        "1.2.3.4",
        "1.2.3.4.5.6",
        "-1.0.0",
        "1.x.3",
        "1. 2.3",
        "１.2.3",
        "1.2.\0",
        "9" * 10 + ".0.0",
        "9" * 40 + ".0.0",
        "²..",
        *HOSTILE,
    ],
)
def test_a_malformed_cursor_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="Last-Event-ID"):
        Cursor.parse(text)


@pytest.mark.parametrize(
    ("one", "other", "is_covered"),
    [
        ((3, 1, 5, 1, 5), (3, 1, 5, 1, 5), True),
        ((3, 2, 0, 2, 0), (3, 1, 9, 1, 9), True),
        ((2, 2, 0, 2, 0), (3, 1, 9, 1, 9), False),
        ((3, 1, 4, 1, 9), (3, 1, 5, 1, 5), False),
        ((3, 1, 9, 1, 4), (3, 1, 5, 1, 5), False),
    ],
)
def test_a_cursor_covers_what_lies_before_it(one: tuple[int, ...], other: tuple[int, ...], is_covered: bool) -> None:
    assert Cursor(*one).covers(Cursor(*other)) == is_covered


def test_each_change_is_returned_once(database: Database) -> None:
    run = Run(database, running(database))
    cursor, collected = START, ([], [], [])  # type: tuple[Cursor, tuple[list[Any], list[Any], list[Any]]]
    for step in range(6):
        warning = {"type": "warning", "reason": "odd", "message": "words"}
        run.deliver(rows.metrics(step, loss=1.0), rows.log(f"one {step}"), warning, rows.log(f"two {step}"))
        result = since(database, run.job_id, cursor, limit=3)
        for kept, new in zip(collected, (result.events, result.points, result.logs), strict=True):
            kept.extend(new)
        cursor = result.cursor
    while cursor != now(database, run.job_id):
        result = since(database, run.job_id, cursor, limit=3)
        collected[2].extend(result.logs)
        assert not result.points
        cursor = result.cursor

    assert [event.seq for event in collected[0]] == list(range(1, 9))
    assert [point[2] for point in collected[1]] == list(range(6))
    assert [line.line for line in collected[2]] == [f"{word} {step}" for step in range(6) for word in ("one", "two")]
    again = since(database, run.job_id, cursor)
    assert (again.events, again.points, again.logs, again.cursor) == ([], [], [], cursor)


def test_changes_end_at_the_requested_cursor(database: Database) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), rows.metrics(1, loss=1.0), rows.log("early"))
    moment = now(database, run.job_id)
    run.deliver(rows.metrics(2, loss=1.0), rows.log("late"), rows.end("drained"))
    second = Run(database, rows.claim(database))
    second.deliver(rows.started(), rows.metrics(2, loss=1.0), rows.log("again"))

    before = since(database, run.job_id, START, moment)
    behind = since(database, run.job_id, moment)

    assert before.cursor == moment
    assert ([point[2] for point in before.points], [line.line for line in before.logs]) == ([1], ["early"])
    assert [point[2] for point in behind.points] == [2, 2]
    assert [line.line for line in behind.logs] == ["late", "again"]
    assert [event.seq for event in (*before.events, *behind.events)] == [
        event.seq for event in rows.events(database, run.job_id)
    ]


@pytest.mark.parametrize("text", ["999999999.0.0", "0.999999999.0", "0.0.999999999", "0.0.0.999999999.1"])
def test_a_cursor_far_ahead_breaks_nothing(database: Database, text: str) -> None:
    run = Run(database, running(database))
    run.deliver(rows.metrics(1, loss=1.0), rows.log("words"))

    result = since(database, run.job_id, Cursor.parse(text))

    assert result.cursor.covers(now(database, run.job_id))


def test_a_new_job_streams_from_the_start(database: Database) -> None:
    assert now(database, submit(database)) == Cursor(1, 0, 0)


def test_a_mark_changes_with_everything_that_a_stream_shows(database: Database) -> None:
    run = Run(database, running(database))
    other = submit(database)
    database.write(lambda session: session.execute(update(Job).values(max_seconds=60)))
    worker_id = rows.worker().id
    database.write(lambda session: workers.register(session, rows.worker(), 1, []))
    progress = {"type": "progress", "step": 1, "total_steps": 2, "epoch": 1, "total_epochs": 2, "phase": "train"}
    acts = {
        "nothing": lambda: None,
        "a lease renewed": lambda: run.deliver(),
        "a started run": lambda: run.deliver(rows.started()),
        "progress": lambda: run.deliver(progress),
        "output alone": lambda: run.deliver(output=[(1, "printed")]),
        "a tag": lambda: database.write(lambda session: submission.change(session, run.job_id, tags=("new",))),
        "a request": lambda: database.write(lambda session: transitions.pause(session, run.job_id)),
        "its time is over": lambda: run.deliver(ran_ms=60_000),
        "a drain of its worker": lambda: database.write(lambda session: workers.drain(session, worker_id)),
        "a drain of another node": lambda: database.write(lambda s: transitions.request_drain(s, run.attempt)),
        "the end": lambda: run.deliver(rows.end("paused")),
    }
    changed = {}
    for what, act in acts.items():
        with database.read() as session:
            before = changes.marks(session, [run.job_id, other, "no such job"])
        act()
        with database.read() as session:
            after = changes.marks(session, [run.job_id, other, "no such job"])
        assert set(after) == {run.job_id, other}
        assert before[other] == after[other]
        changed[what] = before[run.job_id] != after[run.job_id]

    assert changed == dict.fromkeys(acts, True) | {"nothing": False, "a lease renewed": False}
