"""Step times: few samples over all attempts, each with the time of its step."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from jobs import ingest
from jobs.database import Database
from jobs.models import Point, PointBlock
from jobs.step_times import step_times
from tests.jobs import rows
from tests.jobs.rows import Run, claim, running


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


@pytest.mark.parametrize("form", ["blocks", "rows"])
def test_each_sample_is_a_step_with_its_time(database: Database, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    if form == "rows":
        monkeypatch.setattr(ingest, "_MEASURED", "")
    run = Run(database, running(database))
    for start, end in ((0, 3_000), (2_000, 2_010)):
        run.deliver(rows.started(start), rows.metrics(start + 1, rare=1.0))
        size = 10 if form == "blocks" else 3_000  # a block has one time
        for first in range(start + 1, end + 1, size):
            run.deliver(*(rows.metrics(step, loss=1.0) for step in range(first, min(first + size, end + 1))))
        run.end("drained")
        run = Run(database, claim(database))
    of_row, of_block = (
        Point.attempt * 1_000_000 + Point.step * 10,
        PointBlock.attempt * 1_000_000 + PointBlock.last_step * 10,
    )
    database.write(lambda session: session.execute(update(Point).values(at=of_row)))
    database.write(lambda session: session.execute(update(PointBlock).values(at=of_block)))

    for max_samples, first, last in ((200, 0, 2**53), (7, 0, 2**53), (50, 1_500, 1_600), (200, 2_003, 2_005)):
        with database.read() as session:
            result = step_times(session, run.job_id, max_samples, first, last)
        assert min(max_samples, last - first + 1) / 8 <= len(result) <= max_samples
        assert [sample.step for sample in result] == sorted({sample.step for sample in result})
        assert [sample.at for sample in result] == sorted(sample.at for sample in result)
        since = [sample.at - sample.attempt * 1_000_000 - sample.step * 10 for sample in result]
        assert all(0 <= each < (100 if form == "blocks" else 1) for each in since)
        assert all(sample.attempt == (1 if sample.step <= 2_000 else 2) for sample in result)
        assert result[0].step <= max(1, first) + 70


def test_a_job_without_reports_has_no_times(database: Database) -> None:
    run = Run(database, running(database))
    with database.read() as session:
        assert step_times(session, run.job_id) == []
    run.deliver(rows.started())
    with database.read() as session:
        assert step_times(session, run.job_id) == []
