"""A job's curves: for each attempt its points up to the step where the next one resumed, with a limit on points.

When a job returns to a checkpoint, no point is deleted and none is shown twice.  Each range of steps is read at the
finest level of rollups that keeps the limit; level 0 is the points themselves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Select, and_, case, func, select, tuple_
from sqlalchemy.orm import Session

from jobs.expiry import MOST_POINTS
from jobs.ingest import ROLLUP_WIDTHS
from jobs.models import Attempt, Job, Point, Rollup, Series

# A level has an eighth of the next finer level's buckets.  A level with up to four times too many buckets is still
# read, two or four buckets as one, so that a chart never has far fewer points than its limit.
_READ_FACTOR = 4
_TOP = max(ROLLUP_WIDTHS)
_PAGE = 5_000  # points of one query
LAST_STEP = 2**53  # the largest integer that a browser represents exactly


class CurvePoint(NamedTuple):
    """One point of a chart; for a bucket, `value` is its last value, with its extremes beside it."""

    step: int
    value: float | None
    min: float | None
    max: float | None
    attempt: int


@dataclass(frozen=True)
class Detail:
    """A level of rollups, and how many of its buckets are read as one."""

    level: int
    merged: int = 1

    @property
    def width(self) -> int:
        """Steps of a bucket, after merging."""
        return ROLLUP_WIDTHS[self.level] * self.merged


POINTS = Detail(0)


@dataclass(frozen=True)
class Part:
    """The visible steps of one attempt, both ends included."""

    attempt: int
    first: int
    last: int


def metrics(
    session: Session,
    job_id: str,
    keys: Sequence[str] | None = None,
    max_points: int = 1000,
    first: int = 0,
    last: int = LAST_STEP,
) -> dict[str, list[CurvePoint]]:
    """Return curves by series name, each with at most `max_points` points from step `first` to step `last`."""
    statement = select(Series.id, Series.name).where(Series.job_id == job_id).order_by(Series.name)
    if keys:
        statement = statement.where(Series.name.in_(keys))
    names: dict[str, str] = dict(session.execute(statement).all())
    visible = parts(session, job_id, first, last)
    share = max(1, max_points // max(1, len(visible)))
    curves: dict[str, list[CurvePoint]] = {series: [] for series in names}
    for part in visible:
        for detail, ends in levels(session, names, part, share).items():
            for series, points in _read(session, ends, part, detail).items():
                curves[series] += _thinned(points, share)
    # There may be more attempts than points.
    return {name: _thinned(curves[series], max_points) for series, name in names.items()}


def parts(session: Session, job_id: str, first: int, last: int) -> list[Part]:
    """Return the visible steps of each attempt, oldest first, without attempts that never started.

    The state at a step comes from the attempt that reached it; an attempt reaches step 0 by starting.
    """
    rows = session.execute(
        select(Attempt.number, Attempt.start_step)
        .where(Attempt.job_id == job_id, Attempt.start_step.is_not(None))
        .order_by(Attempt.number.desc())
    )
    visible: list[Part] = []
    end = last
    for number, start in rows:
        if (start or 0) <= end and end >= first:
            visible.append(Part(number, first, end))
        end = min(end, start if start else -1)
    return visible[::-1]


def levels(session: Session, series: Iterable[str], part: Part, max_points: int) -> dict[Detail, dict[str, int]]:
    """Return series with their last step, by the finest detail that keeps the limit on points.

    The number of buckets is estimated from the buckets of the coarsest level that the part touches, as if their values
    were evenly spread: as many as fit into the steps, at most one a point.
    """
    width = ROLLUP_WIDTHS[_TOP]
    low, high = part.first // width, part.last // width
    touched = (Rollup.series_id == Series.id, Rollup.attempt == part.attempt, Rollup.level == _TOP)
    count = select(func.sum(Rollup.n)).where(*touched, Rollup.bucket.between(low, high))
    own = (Point.series_id == Series.id, Point.attempt == part.attempt)
    within = (*own, Point.step.between(low * width, (high + 1) * width - 1))
    ends = (select(end(Point.step)).where(*within).scalar_subquery() for end in (func.min, func.max))
    whole = select(func.sum(Rollup.n)).where(*touched).scalar_subquery()
    is_thinned = and_(Job.thinned_at.is_not(None), whole > MOST_POINTS)  # then the buckets tell more than the points
    statement = select(Series.id, count.scalar_subquery(), *ends, is_thinned).join(Job).where(Series.id.in_(series))
    by_detail: dict[Detail, dict[str, int]] = defaultdict(dict)
    for one, total, begin, end, is_thin in session.execute(statement):
        if total is None or end is None:  # no values, or only missing values, which have no buckets
            by_detail[POINTS][one] = part.last
            continue
        steps = max(0, min(part.last, end) - max(part.first, begin) + 1)
        share = steps / (end - begin + 1)
        by_detail[_detail(total * share, steps, max_points, has_points=not is_thin)][one] = end
    return by_detail


def _detail(count: float, steps: int, max_points: int, has_points: bool) -> Detail:
    most = _READ_FACTOR * max_points
    if count <= most and has_points:
        return POINTS
    numbers = {level: min(count, steps / width + 2) for level, width in ROLLUP_WIDTHS.items()}
    level = min((level for level, number in numbers.items() if number <= most), default=_TOP)
    merged = next(
        times for times in (1, 2, _READ_FACTOR) if numbers[level] <= times * max_points or times == _READ_FACTOR
    )
    return Detail(level, merged)


def _read(session: Session, ends: dict[str, int], part: Part, detail: Detail) -> dict[str, list[CurvePoint]]:
    """Read the buckets inside the part, and the points beside them; a bucket's step is its last one so far."""
    series = list(ends)
    curves: dict[str, list[CurvePoint]] = defaultdict(list)
    if detail == POINTS:
        _add_points(session, curves, series, part)
        return curves
    width = detail.width
    begin, end = -(-part.first // width), (part.last + 1) // width
    if begin >= end:
        _add_points(session, curves, series, part)
        return curves
    if begin * width > part.first:
        _add_points(session, curves, series, Part(part.attempt, part.first, begin * width - 1))
    for one, bucket, value, low, high in session.execute(_buckets(series, part.attempt, detail, begin, end)):
        curves[one].append(CurvePoint(min((bucket + 1) * width - 1, ends[one]), value, low, high, part.attempt))
    if end * width <= part.last:
        _add_points(session, curves, series, Part(part.attempt, end * width, part.last))
    return curves


def _buckets(
    series: Sequence[str], attempt: int, detail: Detail, begin: int, end: int
) -> Select[str, int, float, float, float]:
    """Select series, bucket, last value, minimum and maximum, in order; `detail` says how many buckets are merged."""
    merged = detail.merged
    place = Rollup.bucket.op("/")(merged) if merged > 1 else Rollup.bucket
    where = (
        Rollup.series_id.in_(series),
        Rollup.attempt == attempt,
        Rollup.level == detail.level,
        Rollup.bucket.between(begin * merged, end * merged - 1),
    )
    if merged == 1:
        columns = select(Rollup.series_id, Rollup.bucket, Rollup.last, Rollup.min, Rollup.max)
        return columns.where(*where).order_by(Rollup.series_id, Rollup.bucket)
    # The last value of the merged buckets: at most one row has each remainder.
    lasts = (func.max(case((Rollup.bucket % merged == rest, Rollup.last))) for rest in reversed(range(merged)))
    return (
        select(Rollup.series_id, place, func.coalesce(*lasts), func.min(Rollup.min), func.max(Rollup.max))
        .where(*where)
        .group_by(Rollup.series_id, place)
        .order_by(Rollup.series_id, place)
    )


def _add_points(session: Session, curves: dict[str, list[CurvePoint]], series: Sequence[str], part: Part) -> None:
    statement = (
        select(Point.series_id, Point.step, Point.value)
        .where(Point.series_id.in_(series), Point.attempt == part.attempt)
        .where(Point.step.between(part.first, part.last))
        .order_by(Point.series_id, Point.step, Point.seq)
    )
    for one, step, value in session.execute(statement):
        curves[one].append(CurvePoint(step, value, value, value, part.attempt))


def _thinned(points: list[CurvePoint], max_points: int) -> list[CurvePoint]:
    """Merge neighbours until the limit is kept; extremes survive."""
    while len(points) > max_points:
        points = [_merged(points[i : i + 2]) for i in range(0, len(points), 2)]
    return points


def _merged(pair: list[CurvePoint]) -> CurvePoint:
    lows = [p.min for p in pair if p.min is not None]
    highs = [p.max for p in pair if p.max is not None]
    last = pair[-1]
    return CurvePoint(last.step, last.value, min(lows, default=None), max(highs, default=None), last.attempt)


def series_of(session: Session, job_id: str) -> list[tuple[str, str]]:
    """Return id and name of each series of a job, by name."""
    statement = select(Series.id, Series.name).where(Series.job_id == job_id).order_by(Series.name)
    return [(row.id, row.name) for row in session.execute(statement)]


def points_of(
    session: Session, series_id: str, part: Part, after: tuple[int, int]
) -> tuple[list[tuple[int, float | None]], tuple[int, int] | None]:
    """Return (step, value) of the next points of a series, and the place of the last one; None if no more follow.

    Args:
        session: a reading transaction.
        series_id: the series.
        part: the steps of an attempt.
        after: (step, sequence number) of the last point so far.
    """
    statement = (
        select(Point.step, Point.seq, Point.value)
        .where(Point.series_id == series_id, Point.attempt == part.attempt, Point.step <= part.last)
        .where(tuple_(Point.step, Point.seq) > after)
        .order_by(Point.step, Point.seq)
        .limit(_PAGE)
    )
    rows = session.execute(statement).all()
    following = (rows[-1].step, rows[-1].seq) if len(rows) == _PAGE else None
    return [(row.step, row.value) for row in rows], following


def points_after(
    session: Session, job_id: str, after: tuple[int, int], until: tuple[int, int], limit: int
) -> tuple[list[tuple[int, str, int, float | None]], int, int]:
    """Return raw points after one (attempt, seq) up to another, in the order of their reports, and the last place."""
    if until <= after:
        return [], *after
    reached = until
    place = tuple_(Point.attempt, Point.seq)
    statement = (
        select(Point.attempt, Point.seq, Series.name, Point.step, Point.value)
        .join(Series, Series.id == Point.series_id)
        .where(Series.job_id == job_id, place > after, place <= until)
        .order_by(Point.attempt, Point.seq)
    )
    rows = session.execute(statement.limit(limit + 1)).all()
    if len(rows) > limit:
        # The values of a record share its number and stay together: the record that the limit cuts is left out, or
        # returned alone.
        cut = (rows[-1].attempt, rows[-1].seq)
        rows = [row for row in rows if (row.attempt, row.seq) != cut] or session.execute(
            statement.where(place == cut)
        ).all()
        reached = (rows[-1].attempt, rows[-1].seq)
    return [(row.attempt, row.name, row.step, row.value) for row in rows], *reached
