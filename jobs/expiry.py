"""What ends by its age: output, events and points of ended jobs, and rows of ended workers, some in a transaction."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from functools import partial

from sqlalchemy import ColumnElement, Update, delete, func, select, tuple_, update
from sqlalchemy.orm import Session, aliased

from jobs import point_blocks
from jobs.database import Database, now_ms
from jobs.ingest import ROLLUP_WIDTHS
from jobs.models import Event, Job, Log, Point, Rollup, Series, Worker

_DAY_MS = 86_400_000
AT_ONCE = 20  # jobs, or hundreds of workers, of one transaction
BATCH = 5_000  # points of one transaction
MOST_POINTS = 4_000  # of a curve of an ended job, in an attempt


def expire_logs(database: Database, days: float | None, stop: threading.Event) -> int:
    """Delete the log lines of jobs that ended so many days ago, until `stop`; return the number of these jobs.

    None keeps them as long as their jobs.
    """
    return 0 if days is None else _in_batches(database, partial(_expire_logs, days=days), stop)


def _expire_logs(session: Session, days: float) -> int:
    old = select(Log.job_id).join(Job, Job.id == Log.job_id).where(_ended_before(days)).distinct().limit(AT_ONCE)
    ids = session.execute(old).scalars().all()
    if ids:
        session.execute(delete(Log).where(Log.job_id.in_(ids)))
    return len(ids)


def expire_workers(database: Database, days: float) -> None:
    """Delete the rows of workers that ended so many days ago; attempts keep the names of theirs."""
    is_old = Worker.seen_at < now_ms() - int(days * _DAY_MS)
    ended = select(Worker.id).where(~Worker.is_live, is_old).limit(100 * AT_ONCE)
    database.write(lambda session: session.execute(delete(Worker).where(Worker.id.in_(ended))))


def expire_events(database: Database, days: float | None, stop: threading.Event) -> int:
    """Delete the events before the end of jobs that ended so many days ago, until `stop`; return the number of jobs.

    None keeps them as long as their jobs.
    """
    return 0 if days is None else _in_batches(database, partial(_expire_events, days=days), stop)


def _expire_events(session: Session, days: float) -> int:
    first = select(Event.job_id).where(Event.job_id == Job.id, Event.seq == 1).exists()
    # Several events may have one status; the last one with that of the row is the end.
    end = select(func.max(Event.seq)).where(Event.job_id == Job.id, Event.type == Job.status).scalar_subquery()
    old = select(Job.id, end).where(_ended_before(days), first, end > 1).order_by(Job.ended_at).limit(AT_ONCE)
    ends = session.execute(old).all()
    for job_id, seq in ends:
        session.execute(delete(Event).where(Event.job_id == job_id, Event.seq < seq))
    return len(ends)


def thin_curves(database: Database, days: float | None, stop: threading.Event) -> int:
    """Thin out the long curves of jobs that ended so many days ago, until `stop`; return the number of these jobs.

    Of an attempt's curve with more than `MOST_POINTS`, the last point of each bucket of a level of rollups stays, and
    the first point.  Rollups stay as they are, so a chart of the whole curve does not change.  Missing values stay.

    None keeps all points as long as their jobs.
    """
    count = 0
    due = select(Job.id).where(_ended_before(days or 0), Job.thinned_at.is_(None)).order_by(Job.ended_at).limit(1)
    while days is not None and not stop.is_set():
        with database.read() as session:
            if (job_id := session.execute(due).scalar_one_or_none()) is None:
                break
            curves = _long_curves(session, job_id)
            blocks = _long_blocks(session, job_id)
        for series, attempt, width in curves:
            _repeat(database, partial(_thin, series=series, attempt=attempt, width=width), stop)
        for attempt, widths in blocks.items():
            thin = partial(point_blocks.thin, job_id=job_id, attempt=attempt, widths=widths)
            _repeat(database, thin, stop)
        if not stop.is_set():
            thinned = update(Job).where(Job.id == job_id).values(thinned_at=now_ms())
            database.write(partial(_execute, statement=thinned))
            count += 1
    return count


def _repeat(database: Database, thin: Callable[..., int | None], stop: threading.Event) -> None:
    """Repeat a transaction with what it has returned as `after`, until None or `stop`."""
    after: int | None = -1
    while after is not None and not stop.is_set():
        after = database.write(partial(thin, after=after))


def _long_curves(session: Session, job_id: str) -> list[tuple[str, int, int]]:
    """Return series, attempt, and the width in steps of the finest buckets of which there are at most `MOST_POINTS`."""
    by_level = (
        select(Rollup.series_id, Rollup.attempt, Rollup.level, func.count(), func.sum(Rollup.n))
        .join(Series, Series.id == Rollup.series_id)
        .where(Series.job_id == job_id)
        .group_by(Rollup.series_id, Rollup.attempt, Rollup.level)
        .order_by(Rollup.level)
    )
    widths: dict[tuple[str, int], int] = {}
    for series, attempt, level, buckets, points in session.execute(by_level):
        if points > MOST_POINTS and (buckets <= MOST_POINTS or level == max(ROLLUP_WIDTHS)):
            widths.setdefault((series, attempt), ROLLUP_WIDTHS[level])
    return [(*curve, width) for curve, width in widths.items()]


def _long_blocks(session: Session, job_id: str) -> dict[int, dict[int, int]]:
    """Return, by attempt and number of a series, the width as `_long_curves` does, of values in blocks."""
    long: dict[int, dict[int, int]] = defaultdict(dict)
    for (attempt, number), by_width in point_blocks.counts(session, job_id).items():
        few = [width for width, (buckets, _) in by_width.items() if buckets <= MOST_POINTS]
        if max(n for _, n in by_width.values()) > MOST_POINTS:
            long[attempt][number] = min(few, default=max(by_width))
    return long


def _thin(session: Session, series: str, attempt: int, width: int, after: int) -> int | None:
    """Thin out the next steps of a curve; return the last of them, or None at the end."""
    own = (Point.series_id == series, Point.attempt == attempt)
    beyond = select(Point.step).where(*own, Point.step > after).order_by(Point.step).offset(BATCH).limit(1)
    last = session.execute(beyond).scalar_one_or_none()
    later, earlier = aliased(Point), aliased(Point)
    is_same = (later.series_id == series, later.attempt == attempt, later.value.is_not(None))
    in_bucket = (later.step >= Point.step, later.step < (Point.step.op("/")(width) + 1) * width)
    follows = select(later.step).where(
        *is_same, *in_bucket, tuple_(later.step, later.seq) > tuple_(Point.step, Point.seq)
    )
    precedes = select(earlier.step).where(
        earlier.series_id == series, earlier.attempt == attempt, earlier.step < Point.step
    )
    batch = [*own, Point.step > after, Point.value.is_not(None)]
    batch += [] if last is None else [Point.step <= last]
    spare = delete(Point).where(*batch, follows.exists(), precedes.exists())
    session.execute(spare, execution_options={"synchronize_session": False})
    return last


def _ended_before(days: float) -> ColumnElement[bool]:
    return Job.ended_at < now_ms() - int(days * _DAY_MS)


def _in_batches(database: Database, expire: Callable[[Session], int], stop: threading.Event) -> int:
    """Repeat a transaction that handles up to `AT_ONCE` jobs until it has fewer, or `stop`; return their number."""
    count = 0
    while not stop.is_set():
        handled = database.write(expire)
        count += handled
        if handled < AT_ONCE:
            break
    return count


def _execute(session: Session, statement: Update) -> None:
    session.execute(statement)
