"""Values in blocks: every reader returns what was reported, however it was delivered."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from threading import Event

import pytest
from sqlalchemy import func, select

from jobs import changes, curves, expiry, ingest, point_blocks
from jobs.database import Database
from jobs.models import Point, PointBlock, RollupBlock, Series
from tests.jobs import rows
from tests.jobs.rows import Run, running

NAMES = [f"train/{number:02}" for number in range(2 * point_blocks.CHUNK + 6)] + ["eval/top1"]
Reported = dict[str, list[tuple[int, float | None]]]


@pytest.fixture
def run(database: Database) -> Run:
    rows.add_dataset(database)
    run = Run(database, running(database))
    run.deliver(rows.started())
    return run


def deliver(run: Run, seed: int, monkeypatch: pytest.MonkeyPatch, form: str) -> Reported:
    """Deliver records with changing sets of metrics, some steps twice, some values missing; return them by metric."""
    chance = random.Random(seed)
    often = chance.sample(NAMES, 40)
    reported: Reported = defaultdict(list)
    step = 0
    for number in range(60):
        if form == "mixed" and number == 20:
            monkeypatch.setattr(ingest, "_MEASURED", "eval/")  # a worker of this version takes the run over
        elif form == "mixed" and number == 0:
            monkeypatch.setattr(ingest, "_MEASURED", "")
        records = []
        for _ in range(chance.choice((1, 1, 2, 9))):
            step += chance.choice((0, 1, 1, 10))
            names = often if chance.random() < 0.7 else chance.sample(NAMES, chance.randint(0, 9))
            values = {name: None if chance.random() < 0.05 else chance.uniform(-9, 9) for name in names}
            records.append(rows.metrics(step, **values))
            for name, value in values.items():
                reported[name].append((step, value))
        run.deliver(*records)
    return reported


def streamed(database: Database, job_id: str, limit: int) -> Iterator[tuple[str, int, float | None]]:
    attempt = seq = 0
    while True:
        with database.read() as session:
            now = changes.now_cursor(session, job_id)
            page, attempt, seq = curves.points_after(session, job_id, (attempt, seq), now.points, limit)
        if not page:
            return
        assert len(page) <= max(limit, len(NAMES))
        yield from ((name, step, value) for _, name, step, value in page)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["blocks", "mixed"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_reader_returns_what_was_reported(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch, seed: int, form: str
) -> None:
    monkeypatch.setattr(point_blocks, "_BLOCKS_AT_ONCE", 3)  # so that pages end within a delivery
    reported = deliver(run, seed, monkeypatch, form)
    in_order = {name: sorted(own, key=lambda point: point[0]) for name, own in reported.items()}

    with database.read() as session:
        series = curves.series_of(session, run.job_id)
        charts = curves.metrics(session, run.job_id, max_points=100_000)
    whole = curves.Part(1, 0, curves.LAST_STEP)
    exported = {each.name: list(curves.all_points(database, each, whole)) for each in series}
    assert exported == in_order
    assert {name: [(point.step, point.value) for point in own] for name, own in charts.items()} == in_order
    for limit in (1, 50, 10_000):
        by_name: Reported = defaultdict(list)
        for name, step, value in streamed(database, run.job_id, limit):
            by_name[name].append((step, value))
        assert by_name == reported, limit

    middle = reported[NAMES[0]][len(reported[NAMES[0]]) // 2][0]
    with database.read() as session:
        part = curves.metrics(session, run.job_id, max_points=100_000, first=middle, last=middle + 20)
    assert {name: [(point.step, point.value) for point in own] for name, own in part.items() if own} == {
        name: inside
        for name, own in in_order.items()
        if (inside := [point for point in own if middle <= point[0] <= middle + 20])
    }


def test_only_measurements_are_rows(database: Database, run: Run) -> None:
    run.deliver(rows.metrics(1, **{"train/loss": 1.0, "eval/top1": 0.5, "other": 2.0}))

    with database.read() as session:
        assert session.execute(select(Series.name).join(Point, Point.series_id == Series.id)).scalars().all() == [
            "eval/top1"
        ]
        assert session.execute(select(func.count()).select_from(PointBlock)).scalar_one() == 1


def test_buckets_begin_with_the_distance_of_the_reports(database: Database, run: Run) -> None:
    """Buckets that held one value each would take more room than the values."""
    for step in range(10, 1_010, 10):  # as often as the spec says
        run.deliver(rows.metrics(step, loss=float(step)))

    with database.read() as session:
        by_width = dict(session.execute(select(RollupBlock.width, func.count()).group_by(RollupBlock.width)).all())
    assert by_width == {80: 13, 640: 2, 5_120: 1, 40_960: 1, 327_680: 1}


def test_all_buckets_of_an_attempt_have_the_widths_of_its_first_delivery(database: Database, run: Run) -> None:
    run.deliver(rows.metrics(5, loss=1.0), rows.metrics(10, loss=1.0))  # closer than the spec says
    run.deliver(rows.metrics(20, loss=1.0))
    run.deliver(rows.metrics(21, loss=1.0), rows.metrics(22, loss=1.0))

    with database.read() as session:
        widths = set(session.execute(select(RollupBlock.width)).scalars())
    assert widths == {40, 320, 2_560, 20_480, 163_840}


def test_a_series_of_an_earlier_version_gets_a_number(database: Database, run: Run) -> None:
    run.deliver(rows.metrics(1, a=1.0, b=2.0))
    database.write(lambda session: session.execute(Series.__table__.update().values(number=None)))
    database.write(lambda session: session.execute(PointBlock.__table__.delete()))
    run.deliver(rows.metrics(2, b=3.0, c=4.0))
    run.deliver(rows.metrics(3, a=5.0))

    with database.read() as session:
        numbers = {each.name: each.number for each in curves.series_of(session, run.job_id)}
    assert sorted(numbers.values()) == [0, 1, 2]
    assert [(name, step, value) for name, step, _, value in rows.points(database)] == [
        ("a", 3, 5.0),
        ("b", 2, 3.0),
        ("c", 2, 4.0),
    ]


def test_a_thinned_attempt_has_fewer_blocks_and_the_same_chart(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (expiry, curves):
        monkeypatch.setattr(module, "MOST_POINTS", 40)
    monkeypatch.setattr(point_blocks, "_BLOCKS_AT_ONCE", 16)
    for step in range(1, 301):
        run.deliver(rows.metrics(step, loss=float(step * 7_919 % 1_000), **({"rare": 1.0} if step % 50 == 0 else {})))
    run.end("succeeded")
    with database.read() as session:
        before = curves.metrics(session, run.job_id, max_points=8)
    monkeypatch.setattr(expiry, "_ended_before", lambda days: func.coalesce(days, 0) == 0)

    assert expiry.thin_curves(database, 0, Event()) == 1

    stored = rows.points(database)
    with database.read() as session:
        assert curves.metrics(session, run.job_id, max_points=8) == before
        assert session.execute(select(func.count()).select_from(PointBlock)).scalar_one() <= 2 * 300 / 16 + 2
    assert [step for name, step, _, _ in stored if name == "rare"] == list(range(50, 301, 50))
    assert 300 / 16 < len([step for name, step, _, _ in stored if name == "loss"]) < 100
