"""A job's curves: for each attempt its points up to the step where the next one resumed, at most n of them.

Nothing is deleted when a job goes back to a checkpoint, and nothing is shown twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, func, select, tuple_
from sqlalchemy.orm import Session

from jobs.ingest import ROLLUP_WIDTHS
from jobs.models import Attempt, Point, Rollup, Series

# A level holds an eighth of the next finer one's buckets: up to four times too many are read and thinned, so that a
# chart never falls far below the points it may have.
_READ_FACTOR = 4


@dataclass(frozen=True)
class CurvePoint:
    """One point of a chart; when it stands for a bucket, `value` is its last one, beside its extremes."""

    step: int
    value: float | None
    min: float | None
    max: float | None
    attempt: int


def metrics(
    session: Session, job_id: str, keys: Sequence[str] | None = None, max_points: int = 1000
) -> dict[str, list[CurvePoint]]:
    """Curves by series name, each of at most `max_points` points."""
    statement = select(Series.name, Series.id).where(Series.job_id == job_id).order_by(Series.name)
    if keys:
        statement = statement.where(Series.name.in_(keys))
    limits = _last_steps(session, job_id)
    share = max(1, max_points // max(1, len(limits)))
    found = {}
    for name, series in session.execute(statement).all():
        points = [point for attempt, last in limits for point in _curve(session, series, attempt, last, share)]
        found[name] = _thinned(points, max_points)  # there may be more attempts than points
    return found


def _last_steps(session: Session, job_id: str) -> list[tuple[int, int | None]]:
    """(attempt, last step that counts or None for all); attempts that never started are left out.

    The state at a step comes from the attempt that reached it; step 0 is reached by starting.
    """
    rows = session.execute(
        select(Attempt.number, Attempt.start_step)
        .where(Attempt.job_id == job_id, Attempt.start_step.is_not(None))
        .order_by(Attempt.number.desc())
    )
    limits: list[tuple[int, int | None]] = []
    earliest: int | None = None
    for number, start in rows:
        limits.append((number, earliest))
        before = start if start else -1
        earliest = before if earliest is None else min(earliest, before)
    return limits[::-1]


def _curve(session: Session, series: str, attempt: int, last: int | None, max_points: int) -> list[CurvePoint]:
    raw = select(Point.step, Point.value).where(Point.series_id == series, Point.attempt == attempt)
    if last is not None:
        raw = raw.where(Point.step <= last)
    level = _level(session, series, attempt, max_points)
    if level == 0:
        return _thinned(_raw(session, raw, attempt), max_points)
    width = ROLLUP_WIDTHS[level]
    full = select(Rollup).where(Rollup.series_id == series, Rollup.attempt == attempt, Rollup.level == level)
    if last is not None:
        full = full.where((Rollup.bucket + 1) * width - 1 <= last)  # the bucket of the cut is read from its points
    points = [
        CurvePoint((r.bucket + 1) * width - 1, r.last, r.min, r.max, attempt)
        for r in session.execute(full.order_by(Rollup.bucket)).scalars()
    ]
    if last is not None:
        points += _raw(session, raw.where(Point.step >= (last + 1) // width * width), attempt)
    return _thinned(points, max_points)


def _raw(session: Session, statement: Select[int, float | None], attempt: int) -> list[CurvePoint]:
    rows = session.execute(statement.order_by(Point.step, Point.seq))
    return [CurvePoint(step, value, value, value, attempt) for step, value in rows]


def _level(session: Session, series: str, attempt: int, max_points: int) -> int:
    """The finest level with few enough buckets to read; 0 is the points themselves."""
    where = (Rollup.series_id == series, Rollup.attempt == attempt)
    total = session.execute(select(func.sum(Rollup.n)).where(*where, Rollup.level == max(ROLLUP_WIDTHS))).scalar()
    most = _READ_FACTOR * max_points
    if (total or 0) <= most:
        return 0
    counts = dict(session.execute(select(Rollup.level, func.count()).where(*where).group_by(Rollup.level)).all())
    fitting = [level for level in ROLLUP_WIDTHS if counts[level] <= most]
    return min(fitting, default=max(ROLLUP_WIDTHS))


def _thinned(points: list[CurvePoint], max_points: int) -> list[CurvePoint]:
    """Neighbours joined until few enough are left; extremes are kept."""
    while len(points) > max_points:
        points = [_joined(points[i : i + 2]) for i in range(0, len(points), 2)]
    return points


def _joined(pair: list[CurvePoint]) -> CurvePoint:
    lows = [p.min for p in pair if p.min is not None]
    highs = [p.max for p in pair if p.max is not None]
    last = pair[-1]
    return CurvePoint(last.step, last.value, min(lows, default=None), max(highs, default=None), last.attempt)


def points_after(
    session: Session, job_id: str, after: tuple[int, int], until: tuple[int, int], limit: int
) -> tuple[list[tuple[int, str, int, float | None]], int, int]:
    """Raw points after one (attempt, seq) up to another, in the order of their reports, and how far that reaches."""
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
        # A line's values share its number, so a line comes whole: without the one that the limit cuts, or alone.
        cut = (rows[-1].attempt, rows[-1].seq)
        rows = [row for row in rows if (row.attempt, row.seq) != cut] or session.execute(
            statement.where(place == cut)
        ).all()
        reached = (rows[-1].attempt, rows[-1].seq)
    return [(row.attempt, row.name, row.step, row.value) for row in rows], *reached
