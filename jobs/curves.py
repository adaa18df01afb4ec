"""A job's curves: for each attempt its points up to the step where the next one resumed, with a limit on points.

When a job returns to a checkpoint, no point is deleted and none is shown twice.  Each range of steps is read at the
finest level of rollups that keeps the limit; level 0 is the points themselves.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sqlalchemy import and_, case, func, select, tuple_
from sqlalchemy.orm import Session

from jobs import point_blocks
from jobs.database import Database
from jobs.expiry import MOST_POINTS
from jobs.ingest import ROLLUP_WIDTHS
from jobs.models import Attempt, Job, Point, Rollup, Series

# A level has an eighth of the next finer level's buckets.  A level with up to four times too many buckets is still
# read, two or four buckets as one, so that a chart never has far fewer points than its limit.
_READ_FACTOR = 4
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
    """Buckets of rollups by their width in steps, and how many are read as one; width 0 means the points themselves."""

    finest: int
    merged: int = 1

    @property
    def width(self) -> int:
        """Steps of a bucket, after merging."""
        return self.finest * self.merged


POINTS = Detail(0)


@dataclass(frozen=True)
class Part:
    """The visible steps of one attempt, both ends included."""

    attempt: int
    first: int
    last: int


@dataclass(frozen=True)
class Span:
    """How many values a series has in the buckets that a part touches, and their first and last step.

    `is_thin` says that old points were removed, so that the buckets tell more than the points.
    """

    count: int
    begin: int
    end: int
    is_thin: bool


class _Source(Protocol):
    """A way in which an attempt's values are stored."""

    @property
    def widths(self) -> Sequence[int]:
        """Steps of a bucket by level, the finest first."""

    def spans(self, series: Collection[str], part: Part) -> dict[str, Span]:
        """Return the spans of the series that have values, and not only missing ones."""

    def points(self, series: Collection[str], part: Part) -> Iterable[tuple[str, int, float | None]]:
        """Return series, step and value, in order."""

    def buckets(
        self, series: Collection[str], attempt: int, detail: Detail, first: int, last: int
    ) -> Iterable[tuple[str, int, float, float, float]]:
        """Return series, bucket, last value, minimum and maximum, in order, from one bucket to another."""


def metrics(
    session: Session,
    job_id: str,
    keys: Sequence[str] | None = None,
    max_points: int = 1000,
    first: int = 0,
    last: int = LAST_STEP,
) -> dict[str, list[CurvePoint]]:
    """Return curves by series name, each with at most `max_points` points from step `first` to step `last`."""
    statement = select(Series.id, Series.name, Series.number).where(Series.job_id == job_id).order_by(Series.name)
    if keys:
        statement = statement.where(Series.name.in_(keys))
    series = session.execute(statement).all()
    visible = parts(session, job_id, first, last)
    share = max(1, max_points // max(1, len(visible)))
    curves: dict[str, list[CurvePoint]] = {each.id: [] for each in series}
    numbers = {each.id: each.number for each in series if each.number is not None}
    for part in visible:
        read = _curves(_Rows(session), list(curves), part, share)
        if numbers:
            blocks = _Blocks(session, job_id, numbers, part.attempt)
            for one, points in _curves(blocks, list(numbers), part, share).items():
                # A worker of an earlier version may have stored the first values of the attempt.
                read[one] = sorted([*read.get(one, ()), *points], key=lambda point: point.step)
        for one, points in read.items():
            curves[one] += _thinned(points, share)
    # There may be more attempts than points.
    return {each.name: _thinned(curves[each.id], max_points) for each in series}


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


def _curves(source: _Source, series: Collection[str], part: Part, max_points: int) -> dict[str, list[CurvePoint]]:
    curves: dict[str, list[CurvePoint]] = defaultdict(list)
    for detail, ends in _details(source, series, part, max_points).items():
        _read(source, curves, ends, part, detail)
    return curves


def _details(source: _Source, series: Collection[str], part: Part, max_points: int) -> dict[Detail, dict[str, int]]:
    """Return series with their last step, by the finest detail that keeps the limit on points.

    The number of buckets is estimated from the buckets of the coarsest level that the part touches, as if their values
    were evenly spread: as many as fit into the steps, at most one a point.
    """
    by_detail: dict[Detail, dict[str, int]] = defaultdict(dict)
    spans = source.spans(series, part)
    for one in series:
        span = spans.get(one)
        if span is None:  # no values, or only missing values, which have no buckets
            by_detail[POINTS][one] = part.last
            continue
        steps = max(0, min(part.last, span.end) - max(part.first, span.begin) + 1)
        share = steps / (span.end - span.begin + 1)
        detail = _detail(span.count * share, steps, max_points, source.widths, has_points=not span.is_thin)
        by_detail[detail][one] = span.end
    return by_detail


def _detail(count: float, steps: int, max_points: int, widths: Sequence[int], has_points: bool) -> Detail:
    most = _READ_FACTOR * max_points
    if count <= most and has_points:
        return POINTS
    numbers = {width: min(count, steps / width + 2) for width in widths}
    finest = min((width for width, number in numbers.items() if number <= most), default=widths[-1])
    merged = next(
        times for times in (1, 2, _READ_FACTOR) if numbers[finest] <= times * max_points or times == _READ_FACTOR
    )
    return Detail(finest, merged)


def _read(
    source: _Source, curves: dict[str, list[CurvePoint]], ends: dict[str, int], part: Part, detail: Detail
) -> None:
    """Read the buckets inside the part, and the points beside them; a bucket's step is its last one so far."""

    def add_points(first: int, last: int) -> None:
        for one, step, value in source.points(ends, Part(part.attempt, first, last)):
            curves[one].append(CurvePoint(step, value, value, value, part.attempt))

    width = detail.width
    begin, end = (-(-part.first // width), (part.last + 1) // width) if width else (0, 0)
    if begin >= end:
        add_points(part.first, part.last)
        return
    if begin * width > part.first:
        add_points(part.first, begin * width - 1)
    for one, bucket, value, low, high in source.buckets(ends, part.attempt, detail, begin, end - 1):
        curves[one].append(CurvePoint(min((bucket + 1) * width - 1, ends[one]), value, low, high, part.attempt))
    if end * width <= part.last:
        add_points(end * width, part.last)


def level_of(width: int) -> int:
    """Return the level of rows of rollups with a width."""
    return next(level for level, each in ROLLUP_WIDTHS.items() if each == width)


def finest_width(session: Session, series: str, part: Part, max_points: int) -> int:
    """Return the width in steps of the rows of rollups that show a series within a limit; 0 for the points."""
    return next(iter(_details(_Rows(session), [series], part, max_points))).finest


class _Rows:
    """Measurements, and all values that earlier versions have stored: a row each."""

    widths = tuple(ROLLUP_WIDTHS.values())

    def __init__(self, session: Session) -> None:
        self._session = session

    def spans(self, series: Collection[str], part: Part) -> dict[str, Span]:
        width, top = self.widths[-1], max(ROLLUP_WIDTHS)
        low, high = part.first // width, part.last // width
        touched = (Rollup.series_id == Series.id, Rollup.attempt == part.attempt, Rollup.level == top)
        count = select(func.sum(Rollup.n)).where(*touched, Rollup.bucket.between(low, high))
        own = (Point.series_id == Series.id, Point.attempt == part.attempt)
        within = (*own, Point.step.between(low * width, (high + 1) * width - 1))
        ends = (select(end(Point.step)).where(*within).scalar_subquery() for end in (func.min, func.max))
        whole = select(func.sum(Rollup.n)).where(*touched).scalar_subquery()
        is_thin = and_(Job.thinned_at.is_not(None), whole > MOST_POINTS)
        statement = select(Series.id, count.scalar_subquery(), *ends, is_thin).join(Job).where(Series.id.in_(series))
        rows = self._session.execute(statement)
        return {one: Span(*span) for one, *span in rows if span[0] is not None and span[2] is not None}

    def points(self, series: Collection[str], part: Part) -> Iterable[tuple[str, int, float | None]]:
        statement = (
            select(Point.series_id, Point.step, Point.value)
            .where(Point.series_id.in_(series), Point.attempt == part.attempt)
            .where(Point.step.between(part.first, part.last))
            .order_by(Point.series_id, Point.step, Point.seq)
        )
        return self._session.execute(statement).all()

    def buckets(
        self, series: Collection[str], attempt: int, detail: Detail, first: int, last: int
    ) -> Iterable[tuple[str, int, float, float, float]]:
        level, merged = level_of(detail.finest), detail.merged
        where = (
            Rollup.series_id.in_(series),
            Rollup.attempt == attempt,
            Rollup.level == level,
            Rollup.bucket.between(first * merged, (last + 1) * merged - 1),
        )
        if merged == 1:
            columns = select(Rollup.series_id, Rollup.bucket, Rollup.last, Rollup.min, Rollup.max)
            statement = columns.where(*where).order_by(Rollup.series_id, Rollup.bucket)
            return self._session.execute(statement).all()
        place = Rollup.bucket.op("/")(merged)
        # The last value of the merged buckets: at most one row has each remainder.
        lasts = (func.max(case((Rollup.bucket % merged == rest, Rollup.last))) for rest in reversed(range(merged)))
        statement = (
            select(Rollup.series_id, place, func.coalesce(*lasts), func.min(Rollup.min), func.max(Rollup.max))
            .where(*where)
            .group_by(Rollup.series_id, place)
            .order_by(Rollup.series_id, place)
        )
        return self._session.execute(statement).all()


class _Blocks:
    """Values of an attempt in blocks; `numbers` are those of the series."""

    def __init__(self, session: Session, job_id: str, numbers: Mapping[str, int], attempt: int) -> None:
        self._session, self._job_id, self._numbers = session, job_id, numbers
        self.widths = point_blocks.widths(session, job_id, attempt)

    def spans(self, series: Collection[str], part: Part) -> dict[str, Span]:
        if not self.widths:
            return {}
        top = self.widths[-1]
        low, high = part.first // top, part.last // top
        thinned = select(Job.thinned_at.is_not(None)).where(Job.id == self._job_id)
        is_thinned = self._session.execute(thinned).scalar_one()
        spans: dict[str, Span] = {}
        for one, buckets in self._summaries(series, part.attempt, top, 0, LAST_STEP).items():
            touched = [summary for bucket, summary in buckets if low <= bucket <= high]
            if touched:
                is_thin = is_thinned and sum(summary.n for _, summary in buckets) > MOST_POINTS
                whole = functools.reduce(point_blocks.Summary.with_later, touched)
                spans[one] = Span(whole.n, whole.first_step, whole.last_step, is_thin)
        return spans

    def points(self, series: Collection[str], part: Part) -> Iterable[tuple[str, int, float | None]]:
        names = {self._numbers[one]: one for one in series}
        stored = point_blocks.values(self._session, self._job_id, part.attempt, names, part.first, part.last)
        return ((names[number], each.step, each.value) for number, own in stored.items() for each in own)

    def buckets(
        self, series: Collection[str], attempt: int, detail: Detail, first: int, last: int
    ) -> Iterable[tuple[str, int, float, float, float]]:
        merged = detail.merged
        ends = first * merged, (last + 1) * merged - 1
        for one, stored in self._summaries(series, attempt, detail.finest, *ends).items():
            place, value, low, high = stored[0][0] // merged, 0.0, math.inf, -math.inf
            for bucket, summary in stored:
                if bucket // merged != place:
                    yield one, place, value, low, high
                    place, low, high = bucket // merged, math.inf, -math.inf
                value, low, high = summary.last, min(low, summary.min), max(high, summary.max)
            yield one, place, value, low, high

    def _summaries(
        self, series: Collection[str], attempt: int, width: int, first: int, last: int
    ) -> dict[str, list[tuple[int, point_blocks.Summary]]]:
        names = {self._numbers[one]: one for one in series}
        stored = point_blocks.summaries(self._session, self._job_id, attempt, names, width, first, last)
        return {names[number]: own for number, own in stored.items()}


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


def series_of(session: Session, job_id: str) -> list[Series]:
    """Return the series of a job, by name."""
    return list(session.execute(select(Series).where(Series.job_id == job_id).order_by(Series.name)).scalars())


def all_points(database: Database, series: Series, part: Part) -> Iterator[tuple[int, float | None]]:
    """Yield (step, value) of a series in the steps of an attempt, in order; no transaction is open in between."""
    stored = _rows_in_order(database, series.id, part)
    if series.number is not None:
        blocks = point_blocks.in_order(database, series.job_id, part.attempt, series.number, part.first, part.last)
        stored = heapq.merge(stored, blocks, key=lambda point: point[:2])
    return ((step, value) for step, _, value in stored)


def newest(session: Session, series: Sequence[Series], attempt: int, count: int) -> list[dict[str, float | None]]:
    """Return the last `count` reports of an attempt that have some series of a job, newest first, by name."""
    names = {each.number: each.name for each in series if each.number is not None}
    if names and (stored := point_blocks.newest(session, series[0].job_id, attempt, names, count)):
        return [{names[number]: value for number, value in own.items()} for own in stored.values()]
    statement = (
        select(Point.series_id, Point.step, Point.value)
        .where(Point.series_id.in_([each.id for each in series]), Point.attempt == attempt)
        .order_by(Point.step.desc())
        .limit(count * len(series))
    )
    reports: dict[int, dict[str, float | None]] = defaultdict(dict)
    for series_id, step, value in session.execute(statement):
        reports[step][next(each.name for each in series if each.id == series_id)] = value
    return [reports[step] for step in sorted(reports, reverse=True)[:count]]


def _rows_in_order(database: Database, series_id: str, part: Part) -> Iterator[tuple[int, int, float | None]]:
    after: tuple[int, int] | None = (part.first, -1)
    while after is not None:
        statement = (
            select(Point.step, Point.seq, Point.value)
            .where(Point.series_id == series_id, Point.attempt == part.attempt, Point.step <= part.last)
            .where(tuple_(Point.step, Point.seq) > after)
            .order_by(Point.step, Point.seq)
            .limit(_PAGE)
        )
        with database.read() as session:
            rows = session.execute(statement).all()
        yield from ((step, seq, value) for step, seq, value in rows)
        after = (rows[-1].step, rows[-1].seq) if len(rows) == _PAGE else None


def points_after(
    session: Session, job_id: str, after: tuple[int, int], until: tuple[int, int], limit: int
) -> tuple[list[tuple[int, str, int, float | None]], int, int]:
    """Return raw points after one (attempt, seq) up to another, in the order of their reports, and the last place.

    The values of a record share its number and stay together: the record that the limit cuts is left out, or returned
    alone.
    """
    if until <= after:
        return [], *after
    place = tuple_(Point.attempt, Point.seq)
    statement = (
        select(Point.attempt, Point.seq, Series.name, Point.step, Point.value)
        .join(Series, Series.id == Point.series_id)
        .where(Series.job_id == job_id, place > after, place <= until)
        .order_by(Point.attempt, Point.seq)
    )
    rows = list(session.execute(statement.limit(limit + 1)))
    complete = until
    if len(rows) > limit:
        complete = last = (rows[-1].attempt, rows[-1].seq)
        rows = [row for row in rows if row[:2] != last] + list(session.execute(statement.where(place == last)))
    reports = [((row.attempt, row.seq), row.name, row.step, row.value) for row in rows]
    stored, reached = point_blocks.reported_after(session, job_id, after, until, limit + 1)
    if stored:
        names = {each.number: each.name for each in series_of(session, job_id)}
        reports += [((each.attempt, each.seq), names[each.series], each.step, each.value) for each in stored]
        reports.sort(key=lambda report: report[0])
    reached = min(reached, complete)
    reports = [report for report in reports if report[0] <= reached]
    if len(reports) > limit:
        cut = reports[limit][0]
        reports = [each for each in reports if each[0] < cut] or [each for each in reports if each[0] == cut]
        reached = reports[-1][0]
    return [(attempt, name, step, value) for (attempt, _), name, step, value in reports], *reached
