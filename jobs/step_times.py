"""Report times of a job's steps: samples between which curves over time are interpolated."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, aliased

from jobs import point_blocks
from jobs.curves import LAST_STEP, Part, finest_width, level_of, parts
from jobs.ingest import ROLLUP_WIDTHS
from jobs.models import Point, Rollup, Series


class StepTime(NamedTuple):
    """A step, the time when it was stored (milliseconds of the database's clock), and its attempt."""

    step: int
    at: int
    attempt: int


def step_times(
    session: Session, job_id: str, max_samples: int = 200, first: int = 0, last: int = LAST_STEP
) -> list[StepTime]:
    """Return at most `max_samples` samples, in order, from the longest series of each attempt."""
    visible = parts(session, job_id, first, last)
    share = max(1, max_samples // max(1, len(visible)))
    samples = [sample for part in visible for sample in _of_attempt(session, job_id, part, share)]
    return samples[:: -(-len(samples) // max_samples)] if samples else []


def _of_attempt(session: Session, job_id: str, part: Part, max_samples: int) -> list[StepTime]:
    of_blocks = point_blocks.times(session, job_id, part.attempt, part.first, part.last, max_samples)
    if of_blocks:
        return [StepTime(step, at, part.attempt) for step, at in of_blocks]
    series = _longest(session, job_id, part.attempt)
    if series is None:
        return []
    width = finest_width(session, series, part, max_samples)
    inside = (Point.series_id == series, Point.attempt == part.attempt, Point.step.between(part.first, part.last))
    statement = select(Point.step, func.min(Point.at)).where(*inside).group_by(Point.step).order_by(Point.step)
    if width:
        statement = statement.where(Point.step.in_(_first_steps(series, part, width)))
    rows = session.execute(statement).all()
    return [StepTime(step, at, part.attempt) for step, at in rows[:: -(-len(rows) // max_samples) or 1]]


def _longest(session: Session, job_id: str, attempt: int) -> str | None:
    total = (
        select(Rollup.series_id)
        .join(Series, Series.id == Rollup.series_id)
        .where(Series.job_id == job_id, Rollup.attempt == attempt, Rollup.level == max(ROLLUP_WIDTHS))
        .group_by(Rollup.series_id)
        .order_by(func.sum(Rollup.n).desc(), Rollup.series_id)
    )
    return session.execute(total.limit(1)).scalar_one_or_none()


def _first_steps(series: str, part: Part, width: int) -> Select[int | None]:
    """Select the first step of each bucket, with one index lookup a bucket."""
    level, inner = level_of(width), aliased(Point)
    begin = Rollup.bucket * width
    own = (inner.series_id == series, inner.attempt == part.attempt, inner.step >= begin)
    return select(select(func.min(inner.step)).where(*own).correlate(Rollup).scalar_subquery()).where(
        Rollup.series_id == series,
        Rollup.attempt == part.attempt,
        Rollup.level == level,
        Rollup.bucket.between(part.first // width, part.last // width),
    )
