"""Curves over several attempts: no point lost or doubled, within the limit, with their extremes."""

from __future__ import annotations

import itertools

import pytest
from sqlalchemy.orm import Session

from jobs import changes, curves, ingest
from jobs.curves import CurvePoint
from jobs.database import Database
from tests.jobs import rows
from tests.jobs.rows import Run, claim, running


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


@pytest.fixture(autouse=True, params=["blocks", "rows"])
def _form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Store all values in blocks, or in rows as measurements are, and all values of earlier versions."""
    if request.param == "rows":
        monkeypatch.setattr(ingest, "_MEASURED", "")


def curve(database: Database, job_id: str, max_points: int = 1000, name: str = "loss") -> list[CurvePoint]:
    with database.read() as session:
        return curves.metrics(session, job_id, [name], max_points)[name]


def report(run: Run, start: int, steps: range, scale: float = 1.0) -> None:
    """Report `started` at a step, then one value a step: step * scale + attempt / 1000."""
    run.deliver(rows.started(start), *(rows.metrics(step, loss=step * scale + run.number / 1000) for step in steps))


def attempts(database: Database, *parts: tuple[int, range]) -> str:
    """Return one job whose attempts each started at a step and reported some values."""
    run = Run(database, running(database))
    for number, (start, steps) in enumerate(parts):
        if number:
            run.end("drained")
            run = Run(database, claim(database))
        report(run, start, steps)
    return run.job_id


def test_one_attempt_is_shown_as_reported(database: Database) -> None:
    job_id = attempts(database, (0, range(1, 6)))

    assert curve(database, job_id) == [
        CurvePoint(step, step + 0.001, step + 0.001, step + 0.001, 1) for step in range(1, 6)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        # (start, steps it reported) of each attempt; then the attempts' numbers with the steps that count
        ([(0, range(1, 101)), (60, range(61, 201))], [(1, range(1, 61)), (2, range(61, 201))]),
        ([(0, range(1, 101)), (0, range(1, 51))], [(2, range(1, 51))]),
        ([(0, range(101)), (0, range(51))], [(2, range(51))]),  # an evaluation before the first step, twice
        ([(0, range(101)), (100, range(101, 131))], [(1, range(101)), (2, range(101, 131))]),
        (
            [(0, range(1, 101)), (80, range(81, 121)), (40, range(41, 61)), (60, range(61, 300))],
            [(1, range(1, 41)), (3, range(41, 61)), (4, range(61, 300))],
        ),
        (
            [(0, range(1, 700)), (16, range(17, 513)), (512, range(513, 520)), (512, range(513, 900))],
            [(1, range(1, 17)), (2, range(17, 513)), (4, range(513, 900))],
        ),
        ([(0, range(1, 50)), (40, range(0)), (45, range(46, 60))], [(1, range(1, 41)), (3, range(46, 60))]),
    ],
)
def test_each_step_is_shown_once_from_the_attempt_that_reached_it(
    database: Database, parts: list[tuple[int, range]], shown: list[tuple[int, range]]
) -> None:
    job_id = attempts(database, *parts)
    values = [step + number / 1000 for number, steps in shown for step in steps]

    for max_points in (1000, 64, 7):
        result = curve(database, job_id, max_points)

        assert len(result) <= max_points
        assert [point.step for point in result] == sorted({point.step for point in result}), max_points
        assert min(point.min for point in result if point.min is not None) == min(values), max_points
        assert max(point.max for point in result if point.max is not None) == max(values), max_points
        assert result[-1].value == values[-1], max_points
        if max(len(steps) for _, steps in parts) <= max_points // len(parts):
            assert [point.value for point in result] == values, max_points


def test_an_attempt_that_never_started_cuts_nothing(database: Database) -> None:
    run = Run(database, running(database))
    report(run, 0, range(1, 10))
    run.end("drained")
    Run(database, claim(database)).end("drained")
    second = Run(database, claim(database))
    second.send([])

    assert [point.step for point in curve(database, run.job_id)] == list(range(1, 10))


@pytest.mark.parametrize("every", [1, 10])
def test_a_curve_keeps_its_limit_and_its_extremes(database: Database, every: int) -> None:
    run = Run(database, running(database))
    values = {step * every: ((step * 7919) % 3001) - 1500.0 for step in range(1, 3001)}
    run.deliver(rows.started(), *(rows.metrics(step, loss=value) for step, value in values.items()))

    for max_points in (1, 2, 10, 100, 1000, 5000):
        result = curve(database, run.job_id, max_points)

        assert 1 <= len(result) <= max_points
        assert len(result) >= min(max_points, 3000) / 32
        assert min(point.min for point in result if point.min is not None) == min(values.values()), max_points
        assert max(point.max for point in result if point.max is not None) == max(values.values()), max_points
        assert result[-1].value == list(values.values())[-1], max_points


def test_many_attempts_share_the_points(database: Database) -> None:
    job_id = attempts(database, *((start, range(start + 1, start + 41)) for start in range(0, 400, 40)))

    for max_points in (5, 10, 60, 400):
        result = curve(database, job_id, max_points)
        assert len(result) <= max_points
        assert (result[-1].step, result[-1].value) == (400, 400.01)


def test_a_curve_of_missing_values_keeps_the_limit_too(database: Database) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), *(rows.metrics(step, loss=None) for step in range(300)))

    result = curve(database, run.job_id, 100)

    assert len(result) <= 100
    assert {(point.value, point.min, point.max) for point in result} == {(None, None, None)}


def test_a_missing_value_is_a_gap(database: Database) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), rows.metrics(1, loss=1.0), rows.metrics(2, loss=None), rows.metrics(3, loss=3.0))

    assert [point.value for point in curve(database, run.job_id)] == [1.0, None, 3.0]


def test_only_requested_series_are_returned(database: Database) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), rows.metrics(1, loss=1.0, lr=2.0, acc=3.0))

    with database.read() as session:
        assert list(curves.metrics(session, run.job_id)) == ["acc", "loss", "lr"]
        assert list(curves.metrics(session, run.job_id, ["lr", "nothing", "a\0b"])) == ["lr"]


# --- the stream ----------------------------------------------------------------------------------------------------

Row = tuple[int, str, int, float | None]


def points_after(session: Session, job_id: str, after: tuple[int, int], limit: int) -> tuple[list[Row], int, int]:
    """Return the points from a cursor up to now."""
    now = changes.now_cursor(session, job_id)
    return curves.points_after(session, job_id, after, now.points, limit)


def follow(database: Database, job_id: str, limit: int, attempt: int = 0, seq: int = 0) -> list[list[Row]]:
    pages: list[list[Row]] = []
    while True:
        with database.read() as session:
            page, attempt, seq = points_after(session, job_id, (attempt, seq), limit)
        if not page:
            return pages
        pages.append(page)


def test_pages_return_every_point_exactly_once(database: Database) -> None:
    run = Run(database, running(database))
    expected: list[Row] = []
    for number in range(1, 4):
        lines = [
            rows.metrics(step, **{f"m{place}": float(step) for place in range(width)})
            for step, width in zip(range(1, 9), itertools.cycle((3, 1, 5)), strict=False)
        ]
        run.deliver(rows.started(), rows.log("words"), *lines, rows.log("words"))
        expected += [(number, name, line["step"], line["values"][name]) for line in lines for name in line["values"]]
        run.end("drained")
        run = Run(database, claim(database))

    for limit in (1, 2, 3, 7, 100):
        pages = follow(database, run.job_id, limit)

        assert sorted(itertools.chain(*pages)) == sorted(expected), limit
        assert [row[0] for page in pages for row in page] == sorted(row[0] for row in expected), limit
        assert all(len(page) <= max(limit, 5) for page in pages), limit  # one line comes whole


@pytest.mark.slow
def test_points_that_are_delivered_while_reading_are_returned_once(database: Database) -> None:
    """A reader whose statements saw different moments would skip points or bring them twice."""
    run = Run(database, running(database))
    run.deliver(rows.started())

    def write() -> None:
        for step in range(60):
            run.deliver(rows.metrics(step, loss=float(step)))

    received: list[Row] = []
    attempt = seq = 0
    with rows.in_background(write) as writing:
        while not (writing.done() and seq == run.seq):
            with database.read() as session:
                page, attempt, seq = points_after(session, run.job_id, (attempt, seq), 5)
            received += page
        writing.result()

    assert [row[2] for row in received] == list(range(60))


def test_a_read_sees_one_moment(database: Database) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), rows.metrics(1, loss=1.0))
    with database.read() as session:
        before = points_after(session, run.job_id, (0, 0), 100)
        with rows.in_background(lambda: run.deliver(rows.metrics(2, loss=2.0))) as delivery:
            if database.engine.dialect.name == "postgresql":  # on SQLite the writer waits for the reader
                delivery.result(timeout=30)
            assert points_after(session, run.job_id, (0, 0), 100) == before
            session.rollback()

    assert [len(page) for page in follow(database, run.job_id, 100)] == [2]


def test_a_cursor_beyond_all_points_returns_nothing(database: Database) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), rows.metrics(1, loss=1.0))

    with database.read() as session:
        for cursor in ((1, 10**18), (10**18, 0), (2, 0), (1, 2)):
            assert points_after(session, run.job_id, cursor, 100) == ([], *cursor)
        assert curves.points_after(session, "no such job", (0, 0), (9, 9), 100) == ([], 9, 9)


def test_an_invented_cursor_returns_the_points_after_it(database: Database) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), rows.metrics(1, loss=1.0))

    with database.read() as session:
        for cursor in ((0, 10**18), (0, 0), (1, 0)):
            assert len(points_after(session, run.job_id, cursor, 100)[0]) == 1, cursor


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("count", [501, 1_300, 2_050, 4_500])
def test_a_long_curve_uses_most_of_its_limit(database: Database, count: int) -> None:
    job_id = attempts(database, (0, range(1, count + 1)))

    assert 125 <= len(curve(database, job_id, max_points=250)) <= 250


# --- a part of the steps ---------------------------------------------------------------------------------------------


def part(database: Database, job_id: str, first: int, last: int, max_points: int) -> list[CurvePoint]:
    with database.read() as session:
        return curves.metrics(session, job_id, ["loss"], max_points, first, last)["loss"]


@pytest.fixture
def long_run(database: Database) -> tuple[str, dict[int, float]]:
    """Return a job of two attempts, the second from step 6,001 on, and the final value of each step."""
    run = Run(database, running(database))
    values: dict[int, float] = {}
    for start, end in ((0, 7_000), (6_000, 12_000)):
        for step in range(start + 1, end + 1):
            values[step] = ((step * 7919) % 3001) - 1500.0 + start
        lines = [rows.metrics(step, loss=values[step]) for step in range(start + 1, end + 1)]
        run.deliver(rows.started(start), *lines)
        if end < 12_000:
            run.end("drained")
            run = Run(database, claim(database))
    return run.job_id, values


@pytest.mark.slow
def test_a_part_has_only_its_steps_its_extremes_and_more_detail(
    database: Database, long_run: tuple[str, dict[int, float]]
) -> None:
    job_id, values = long_run
    parts = [(1, 12_000), (777, 5_333), (5_990, 6_010), (6_001, 12_000), (64, 127), (8_191, 8_191), (3_000, 9_001)]
    for (first, last), max_points in itertools.product(parts, (7, 100, 1000)):
        result = part(database, job_id, first, last, max_points)
        inside = [values[step] for step in range(first, last + 1)]

        assert min(len(inside), max_points) / 4 <= len(result) <= max_points
        assert [point.step for point in result] == sorted({point.step for point in result})
        assert all(first <= point.step <= last for point in result)
        assert min(point.min for point in result if point.min is not None) == min(inside)
        assert max(point.max for point in result if point.max is not None) == max(inside)
        assert (result[-1].step, result[-1].value) == (last, inside[-1])
        if len(inside) <= max_points // 2:
            assert [point.value for point in result] == inside


def test_a_part_beyond_all_steps_is_empty(database: Database, long_run: tuple[str, dict[int, float]]) -> None:
    job_id, _ = long_run

    assert part(database, job_id, 12_001, 2**53, 1000) == []
    assert part(database, job_id, 500, 400, 1000) == []
