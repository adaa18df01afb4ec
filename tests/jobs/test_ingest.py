"""The rows of a delivery: points, rollups, logs, checkpoints, evaluations."""

from __future__ import annotations

import math
import random
from collections.abc import Collection
from typing import Any

import pytest
from sqlalchemy import func, select

from jobs import ingest, point_blocks
from jobs.database import Database
from jobs.ingest import MAX_LOG_LINE, MAX_SERIES_NAME, ROLLUP_WIDTHS
from jobs.models import Checkpoint, Evaluation, Event, JobEvaluation, Log, Rollup, RollupBlock, Series
from jobs.status import Status
from tests.jobs import rows
from tests.jobs.rows import Run, at_once, claim, job, running, submit


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


@pytest.fixture
def run(database: Database) -> Run:
    return Run(database, running(database))


@pytest.fixture(params=["blocks", "rows"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Store all values in blocks, or in rows as measurements are."""
    if request.param == "rows":
        monkeypatch.setattr(ingest, "_MEASURED", "")
    return str(request.param)


def summaries(database: Database, number: int = 0) -> dict[tuple[int, int, int], tuple[int, float, float, float]]:
    """Return how many values, minimum, maximum and last value by attempt, width and bucket, of one series."""
    with database.read() as session:
        stored = {
            (each.attempt, ROLLUP_WIDTHS[each.level], each.bucket): (each.n, each.min, each.max, each.last)
            for each in session.execute(select(Rollup)).scalars()
        }
        for each in session.execute(select(RollupBlock)).scalars():
            place = (each.job_id, each.attempt, [number], each.width, each.bucket, each.bucket)
            for bucket, one in point_blocks.summaries(session, *place).get(number, ()):
                stored[each.attempt, each.width, bucket] = (one.n, one.min, one.max, one.last)
    return stored


# --- metrics -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("form")
def test_points_are_stored_as_reported(database: Database, run: Run) -> None:
    run.deliver(rows.metrics(1, loss=0.1, lr=1e-300), rows.metrics(2, loss=-1.7976931348623157e308))
    run.deliver(rows.metrics(3, loss=0.0, acc=1))

    assert rows.points(database) == [
        ("acc", 3, 3, 1.0),
        ("loss", 1, 1, 0.1),
        ("loss", 2, 2, -1.7976931348623157e308),
        ("loss", 3, 3, 0.0),
        ("lr", 1, 1, 1e-300),
    ]
    assert job(database, run.job_id).latest_metrics == {"acc": 1.0, "loss": 0.0, "lr": 1e-300}


@pytest.mark.usefixtures("form")
def test_steps_beyond_32_bits_are_stored(database: Database, run: Run) -> None:
    run.deliver(rows.metrics(2**40, loss=1.0))

    assert rows.points(database) == [("loss", 2**40, 1, 1.0)]


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_stored_as_null(database: Database, run: Run, value: float | None) -> None:
    run.deliver(rows.metrics(1, loss=value), rows.metrics(2, loss=2.0))

    assert [point[3] for point in rows.points(database)] == [None, 2.0]
    assert {count for count, *_ in summaries(database).values()} == {1}


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("value", [2**63, -(2**70), True])
def test_a_whole_number_is_a_value_too(database: Database, run: Run, value: int) -> None:
    run.deliver(rows.metrics(1, loss=value))

    assert [point[3] for point in rows.points(database)] == [float(value)]


@pytest.mark.usefixtures("form")
def test_a_record_without_values_stores_nothing(database: Database, run: Run) -> None:
    run.deliver(rows.metrics(1), rows.metrics(2, loss=1.0))

    assert rows.points(database) == [("loss", 2, 2, 1.0)]


@pytest.mark.usefixtures("form")
def test_long_names_that_begin_alike_become_one_series(database: Database, run: Run) -> None:
    long = "x" * MAX_SERIES_NAME
    run.deliver({"type": "metrics", "step": 1, "values": {long + "a": 1.0, long + "b": 2.0}})

    assert rows.points(database) == [(long, 1, 1, 2.0)]


def naive_rollups(reported: list[tuple[int, float | None]], widths: Collection[int]) -> dict[tuple[int, ...], Any]:
    result: dict[tuple[int, int], list[float]] = {}
    for width in widths:
        for step, value in reported:
            if value is not None:
                result.setdefault((width, step // width), []).append(value)
    return {(1, *key): (len(v), min(v), max(v), v[-1]) for key, v in result.items()}


def test_names_of_metrics_are_limited(database: Database, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of jobs hold the latest value of each, so a run that invents names would slow down all readers."""
    monkeypatch.setattr("jobs.ingest.MAX_SERIES", 3)
    for step in range(1, 5):
        run.deliver({"type": "metrics", "step": step, "values": {"train/loss": 1.0, f"new/{step}": 1.0}})

    names = {"train/loss", "new/1", "new/2"}
    with database.read() as session:
        assert set(session.execute(select(Series.name)).scalars()) == names
        warnings = session.execute(select(Event.data).where(Event.type == "warning")).scalars().all()
    assert [name for name, step, _, _ in rows.points(database) if step == 4] == ["train/loss"]
    assert set(job(database, run.job_id).latest_metrics or {}) == names
    assert [data["reason"] for data in warnings] == ["refused_metrics"]


@pytest.mark.usefixtures("form")
def test_rollups_equal_a_naive_computation_over_many_batches(database: Database, run: Run) -> None:
    chance = random.Random(0)
    steps = sorted(chance.choices(range(6000), k=400))
    reported = [(step, None if chance.random() < 0.1 else chance.uniform(-5, 5)) for step in steps]
    rest = [rows.metrics(step, loss=value) for step, value in reported]
    while rest:
        size = chance.choice((1, 2, 7, 40))
        run.deliver(*rest[:size])
        rest = rest[size:]

    stored = summaries(database)
    widths = {width for _, width, _ in stored}
    assert len(widths) == 5
    assert stored == naive_rollups(reported, widths)


@pytest.mark.usefixtures("form")
def test_rollups_of_attempts_stay_apart(database: Database, run: Run) -> None:
    run.deliver(rows.started(), rows.metrics(1, loss=1.0))
    run.end("drained")
    Run(database, claim(database)).deliver(rows.started(), rows.metrics(1, loss=5.0))

    assert {(number, *facts) for (number, _, _), facts in summaries(database).items()} == {
        (1, 1, 1.0, 1.0, 1.0),
        (2, 1, 5.0, 5.0, 5.0),
    }
    with database.read() as session:
        assert session.execute(select(func.count()).select_from(Series)).scalar_one() == 1


# --- progress, environment, logs -----------------------------------------------------------------------------------


def test_the_latest_progress_and_the_environment_are_kept(database: Database, run: Run) -> None:
    run.deliver(rows.progress(1), rows.progress(2), rows.started(7))

    progress = rows.progress(2)
    del progress["type"]
    assert job(database, run.job_id).progress == progress
    attempt = rows.attempts(database, run.job_id)[0]
    assert (attempt.start_step, attempt.environment) == (7, {"device": "cpu"})


def logs(database: Database) -> list[tuple[int, str, str]]:
    with database.read() as session:
        statement = select(Log.seq, Log.stream, Log.line).order_by(Log.seq)
        return [(seq, stream, line) for seq, stream, line in session.execute(statement)]


def test_log_lines_and_output_share_one_numbering(database: Database, run: Run) -> None:
    run.deliver(rows.log("one"), output=[(1, "out 1"), (2, "out 2")])
    run.deliver(output=[(2, "out 2"), (3, "out 3")])
    run.deliver(rows.log("two"))

    assert logs(database) == [
        (1, "run", "one"),
        (2, "output", "out 1"),
        (3, "output", "out 2"),
        (4, "output", "out 3"),
        (5, "run", "two"),
    ]


def test_a_long_log_line_is_cut(database: Database, run: Run) -> None:
    run.deliver(rows.log("é" * (MAX_LOG_LINE + 5)), output=[(1, "x" * 1_000_000)])

    assert [len(line) for _, _, line in logs(database)] == [MAX_LOG_LINE, MAX_LOG_LINE]


HOSTILE = [
    "nul \0 nul",
    "lone \ud800 surrogate",
    "escaped \udcff byte",
    "\u202e right to left",
    "quote ' \" ; --",
    "🏁",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_run_blocks_its_delivery(database: Database, run: Run, text: str) -> None:
    """File names and library messages may hold anything; a delivery that always failed would hold the job for ever."""
    run.deliver(
        rows.started() | {"device": text},
        {"type": "metrics", "step": 1, "values": {text: 1.0}},
        rows.log(text),
        {"type": "warning", "reason": "odd", "message": text},
        rows.progress(1, phase=text),
        output=[(1, text)],
    )
    run.deliver(rows.end("failed", "bad_data", text))

    result = job(database, run.job_id)
    assert result.status == Status.FAILED
    for stored in (result.status_message, logs(database)[0][2], rows.points(database)[0][0]):
        assert stored is not None
        assert stored.encode()
        assert "\0" not in stored
    if text.isprintable():
        assert (result.status_message, rows.points(database)[0][0]) == (text, text)


# --- checkpoints ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_row_and_its_event(database: Database, run: Run) -> None:
    run.deliver(rows.started(), rows.checkpoint(10))

    with database.read() as session:
        result = session.execute(select(Checkpoint)).scalar_one()
    assert (result.job_id, result.attempt, result.step, result.sha256, result.size) == (run.job_id, 1, 10, rows.SHA, 10)
    assert result.metrics == {"loss": 1.5}
    assert (result.pinned, result.deleted_at) == (False, None)
    assert rows.events(database, run.job_id)[-1].type == "checkpoint"


# --- evaluations ---------------------------------------------------------------------------------------------------


def evaluations(database: Database) -> list[Evaluation]:
    with database.read() as session:
        return list(session.execute(select(Evaluation).order_by(Evaluation.id)).scalars())


def test_a_value_is_stored_once_and_linked_to_every_job(database: Database) -> None:
    runs = [Run(database, running(database, kind="evaluate")) for _ in range(2)]
    for run in runs:
        run.deliver(rows.evaluation(0.5), rows.evaluation(0.25, metric="loss"))

    assert [(result.metric, result.value) for result in evaluations(database)] == [("top1", 0.5), ("loss", 0.25)]
    assert len(rows.rows_of(database, JobEvaluation)) == 4


def test_a_second_measurement_does_not_change_the_first(database: Database) -> None:
    for value in (0.5, 0.75):
        Run(database, running(database, kind="evaluate")).deliver(rows.evaluation(value))

    assert [result.value for result in evaluations(database)] == [0.5]


def test_the_details_of_an_older_version_are_replaced_by_those_of_the_same_value(database: Database) -> None:
    for value, details in ((0.5, {"C": 1}), (0.5, {"C": 1, "per_image": {}}), (0.75, {"C": 2})):
        Run(database, running(database, kind="evaluate")).deliver(rows.evaluation(value, details=details))

    assert [result.details for result in evaluations(database)] == [{"C": 1, "per_image": {}}]


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": "knn"},
        {"protocol_version": 2},
        {"dataset_digest": "e" * 64},
        {"split_digest": "e" * 64},
        {"params": {"C": 2.0}},
        {"seed": 1},
        {"metric": "loss"},
    ],
)
def test_a_different_measurement_is_another_value(database: Database, change: dict[str, Any]) -> None:
    Run(database, running(database, kind="evaluate")).deliver(rows.evaluation(), rows.evaluation(0.75, **change))

    assert len(evaluations(database)) == 2


def test_values_of_different_features_are_stored_apart(database: Database) -> None:
    run = Run(database, running(database))
    run.deliver(rows.started(), rows.checkpoint(1, "a" * 64), rows.checkpoint(2, "b" * 64), rows.end("succeeded"))
    features: list[dict[str, Any]] = [
        {"kind": "checkpoint", "checkpoint_id": result.id} for result in rows.checkpoints(database, run.job_id)
    ]
    features += [{"kind": "pixels"}, {"kind": "untrained"}]
    for spec in features:
        Run(database, running(database, kind="evaluate", spec={"features": spec})).deliver(rows.evaluation())
    Run(database, running(database, kind="evaluate", spec={"seed": 1})).deliver(rows.evaluation())

    result = evaluations(database)
    assert len({entry.features_digest for entry in result}) == 5
    assert [entry.features_digest for entry in result][:2] == ["a" * 64, "b" * 64]
    assert [entry.checkpoint_id for entry in result][:2] == [spec["checkpoint_id"] for spec in features[:2]]


def test_jobs_that_measure_the_same_at_once_make_one_row(database: Database) -> None:
    submitted = [submit(database, kind="evaluate") for _ in range(6)]
    runs = [Run(database, claim(database)) for _ in submitted]
    lines = [rows.evaluation(metric=f"m{number}") for number in range(8)]

    at_once(6, lambda number: runs[number].deliver(*lines))

    assert len(evaluations(database)) == 8
    assert len(rows.rows_of(database, JobEvaluation)) == 48
