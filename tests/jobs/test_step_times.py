"""Step times: few samples over all attempts, each with the time of its step."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from jobs.database import Database
from jobs.models import Point
from jobs.step_times import StepTime, step_times
from tests.jobs import rows
from tests.jobs.rows import Run, claim, running


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def test_each_sample_is_a_step_with_its_time(database: Database) -> None:
    run = Run(database, running(database))
    for start, end in ((0, 3_000), (2_000, 2_010)):
        run.deliver(rows.started(start), rows.metrics(start + 1, rare=1.0))
        run.deliver(*(rows.metrics(step, loss=1.0) for step in range(start + 1, end + 1)))
        run.end("drained")
        run = Run(database, claim(database))
    at = Point.attempt * 1_000_000 + Point.step * 10
    database.write(lambda session: session.execute(update(Point).values(at=at)))

    for max_samples, first, last in ((200, 0, 2**53), (7, 0, 2**53), (50, 1_500, 1_600), (200, 2_003, 2_005)):
        with database.read() as session:
            result = step_times(session, run.job_id, max_samples, first, last)
        assert min(max_samples, last - first + 1) / 8 <= len(result) <= max_samples
        assert [sample.step for sample in result] == sorted({sample.step for sample in result})
        assert result == [StepTime(s.step, s.attempt * 1_000_000 + s.step * 10, s.attempt) for s in result]
        assert all(sample.attempt == (1 if sample.step <= 2_000 else 2) for sample in result)
        assert result[0].step <= max(1, first) + 70


def test_a_job_without_reports_has_no_times(database: Database) -> None:
    run = Run(database, running(database))
    with database.read() as session:
        assert step_times(session, run.job_id) == []
    run.deliver(rows.started(), rows.metrics(1, loss=None))
    with database.read() as session:
        assert step_times(session, run.job_id) == []
