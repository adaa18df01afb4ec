"""Values that a run reports again and again: many of them in a row, a few bytes each.

The series of a job have numbers, and `CHUNK` neighbours are a chunk.  A delivery adds a row for each chunk and set of
series that some of its records have, a *block*: the numbers of these records and their steps, and then the values of
each series.  Each bucket of rollups is a row of all series of a chunk, too.  Arrays are little-endian; a missing value
is not a number.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, Final, NamedTuple

from sqlalchemy import and_, delete, func, or_, select, tuple_
from sqlalchemy.orm import Session

from jobs.database import Database, insert
from jobs.models import PointBlock, RollupBlock

CHUNK: Final = 32  # series of a row at most: a reader of one curve reads the others of its chunk, too
FACTOR: Final = 8  # buckets of a level that are one bucket of the next level
LEVELS: Final = 5
_BLOCKS_AT_ONCE = 64  # of one read
_WORD = 8  # bytes of a step, of a number of a record, and of a value
_SUMMARY: Final = struct.Struct("<qqqddd")


class Report(NamedTuple):
    """The number of a record, its step, and its values by the number of the series."""

    seq: int
    step: int
    values: Mapping[int, float | None]


class Value(NamedTuple):
    """A value with its step and the number of its record: a step may be reported twice."""

    step: int
    seq: int
    value: float | None


class Summary(NamedTuple):
    """What a bucket tells of a series: how many values, their first and last step, extremes, and the last report."""

    n: int
    first_step: int
    last_step: int
    min: float
    max: float
    last: float

    def with_later(self, later: Summary) -> Summary:
        """Return the summary of both."""
        return Summary(
            self.n + later.n,
            min(self.first_step, later.first_step),
            max(self.last_step, later.last_step),
            min(self.min, later.min),
            max(self.max, later.max),
            later.last,
        )


class Reported(NamedTuple):
    """A value in the order of reports, with its attempt and the number of its series."""

    attempt: int
    series: int
    step: int
    seq: int
    value: float | None


Rollups = dict[tuple[int, int, int], dict[int, Summary]]  # by chunk, width and bucket; then by series


def store(session: Session, job_id: str, attempt: int, reports: Sequence[Report], stride: int) -> None:
    """Store what an attempt delivers.

    Args:
        session: a writing transaction; an attempt delivers once at a time.
        job_id: of the job.
        attempt: its number.
        reports: in the order of their records, after those that are stored already.
        stride: steps between two reports, as far as the spec tells; reports of the first delivery may be closer.
    """
    _add_blocks(session, job_id, attempt, reports, {"seq": max(report.seq for report in reports)})
    levels = widths(session, job_id, attempt) or _new_widths(reports, stride)
    _add_rollups(session, job_id, attempt, _rollups(reports, levels))


def _new_widths(reports: Sequence[Report], stride: int) -> list[int]:
    steps = sorted({report.step for report in reports})
    closest = min((later - earlier for earlier, later in pairwise(steps)), default=stride)
    return [min(stride, closest) * FACTOR**level for level in range(1, LEVELS + 1)]


def _add_blocks(
    session: Session, job_id: str, attempt: int, reports: Sequence[Report], delivery: Mapping[str, int]
) -> None:
    """Add the blocks of a delivery, with the number of its last record and, if it is not now, its time."""
    chunks: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    blocks: dict[tuple[int, tuple[int, ...]], list[Report]] = defaultdict(list)
    for report in reports:
        numbers = tuple(sorted(report.values))
        if numbers not in chunks:
            chunks[numbers] = [(chunk, tuple(own)) for chunk, own in groupby(numbers, lambda number: number // CHUNK)]
        for chunk in chunks[numbers]:
            blocks[chunk].append(report)
    place = {"job_id": job_id, "attempt": attempt, **delivery}
    rows = [
        place | {"chunk": chunk, "part": part} | _block(columns, own)
        for part, ((chunk, columns), own) in enumerate(blocks.items())
    ]
    session.execute(insert(session, PointBlock), rows)


def _block(columns: Sequence[int], reports: Sequence[Report]) -> dict[str, Any]:
    steps = [report.step for report in reports]
    values = [
        [float("nan") if (value := report.values[column]) is None else value for report in reports]
        for column in columns
    ]
    data = [_packed("q", [report.seq for report in reports]), _packed("q", steps), *(_packed("d", v) for v in values)]
    ends = {"first_step": min(steps), "last_step": max(steps)}
    return ends | {"columns": _packed("H", columns), "data": b"".join(data)}


def _rollups(reports: Sequence[Report], levels: Sequence[int]) -> Rollups:
    """Return the buckets of all widths, the wider ones made from the narrower ones."""
    finest, *wider = levels
    narrow: Rollups = defaultdict(dict)
    for report in reports:
        step = report.step
        for number, value in report.values.items():
            if value is not None:
                summary = Summary(1, step, step, value, value, value)
                _add(narrow[number // CHUNK, finest, step // finest], number, summary)
    rollups = dict(narrow)
    for width in wider:
        wide: Rollups = defaultdict(dict)
        for (chunk, _, bucket), summaries in narrow.items():
            for number, summary in summaries.items():
                _add(wide[chunk, width, bucket // FACTOR], number, summary)
        rollups |= wide
        narrow = wide
    return rollups


def _add(bucket: dict[int, Summary], number: int, later: Summary) -> None:
    earlier = bucket.get(number)
    bucket[number] = later if earlier is None else earlier.with_later(later)


def _add_rollups(session: Session, job_id: str, attempt: int, rollups: Rollups) -> None:
    """Add buckets, or what they tell to those that are stored."""
    if not rollups:
        return
    ends: dict[int, tuple[int, int]] = {}
    for _, width, bucket in rollups:
        low, high = ends.get(width, (bucket, bucket))
        ends[width] = min(low, bucket), max(high, bucket)
    touched = (and_(RollupBlock.width == width, RollupBlock.bucket.between(*each)) for width, each in ends.items())
    statement = (
        select(RollupBlock.chunk, RollupBlock.width, RollupBlock.bucket, RollupBlock.columns, RollupBlock.data)
        .where(RollupBlock.job_id == job_id, RollupBlock.attempt == attempt, or_(*touched))
        .where(RollupBlock.chunk.in_({chunk for chunk, _, _ in rollups}))
    )
    for chunk, width, bucket, columns, data in session.execute(statement):
        if later := rollups.get((chunk, width, bucket)):
            stored = _summaries(columns, data)
            for number, summary in later.items():
                _add(stored, number, summary)
            rollups[chunk, width, bucket] = stored
    rows = [
        {
            "job_id": job_id,
            "attempt": attempt,
            "chunk": chunk,
            "width": width,
            "bucket": bucket,
            "columns": _packed("H", summaries),
            "data": b"".join(_SUMMARY.pack(*summary) for summary in summaries.values()),
        }
        for (chunk, width, bucket), summaries in rollups.items()
    ]
    added = insert(session, RollupBlock)
    key = ["job_id", "attempt", "chunk", "width", "bucket"]
    replaced = {"columns": added.excluded.columns, "data": added.excluded.data}
    session.execute(added.on_conflict_do_update(index_elements=key, set_=replaced), rows)


# --- reading ---------------------------------------------------------------------------------------------------------


def summaries(
    session: Session, job_id: str, attempt: int, numbers: Collection[int], width: int, first: int, last: int
) -> dict[int, list[tuple[int, Summary]]]:
    """Return (bucket, summary) of each series, in order, from bucket `first` to bucket `last`."""
    statement = (
        select(RollupBlock.bucket, RollupBlock.columns, RollupBlock.data)
        .where(RollupBlock.job_id == job_id, RollupBlock.attempt == attempt, RollupBlock.chunk.in_(_chunks(numbers)))
        .where(RollupBlock.width == width, RollupBlock.bucket.between(first, last))
        .order_by(RollupBlock.bucket)
    )
    wanted = set(numbers)
    result: dict[int, list[tuple[int, Summary]]] = defaultdict(list)
    for bucket, columns, data in session.execute(statement):
        for place, number in enumerate(_unpacked("H", columns)):
            if number in wanted:
                summary = Summary._make(_SUMMARY.unpack_from(data, place * _SUMMARY.size))
                result[number].append((bucket, summary))
    return result


def widths(session: Session, job_id: str, attempt: int) -> list[int]:
    """Return the widths of an attempt's buckets in steps, the narrowest first; none if it has no values in blocks."""
    statement = (
        select(RollupBlock.width)
        .where(RollupBlock.job_id == job_id, RollupBlock.attempt == attempt)
        .order_by(RollupBlock.chunk.desc(), RollupBlock.width.desc())  # as in the index
        .limit(1)
    )
    widest = session.execute(statement).scalar_one_or_none()
    return [] if widest is None else [widest // FACTOR**level for level in reversed(range(LEVELS))]


def values(
    session: Session, job_id: str, attempt: int, numbers: Collection[int], first: int, last: int
) -> dict[int, list[Value]]:
    """Return the values of each series from step `first` to step `last`, by step."""
    statement = (
        select(PointBlock.columns, PointBlock.data)
        .where(PointBlock.job_id == job_id, PointBlock.attempt == attempt, PointBlock.chunk.in_(_chunks(numbers)))
        .where(PointBlock.first_step <= last, PointBlock.last_step >= first)
    )
    wanted = set(numbers)
    result: dict[int, list[Value]] = defaultdict(list)
    for columns, data in session.execute(statement):
        for number, own in _values(columns, data, wanted):
            result[number] += [each for each in own if first <= each.step <= last]
    for own in result.values():
        own.sort(key=_place)
    return result


def in_order(database: Database, job_id: str, attempt: int, number: int, first: int, last: int) -> Iterator[Value]:
    """Yield the values of a series from step `first` to step `last`, by step; no transaction is open while it waits."""
    order = (PointBlock.first_step, PointBlock.seq, PointBlock.part)
    statement = (
        select(*order, PointBlock.columns, PointBlock.data)
        .where(PointBlock.job_id == job_id, PointBlock.attempt == attempt, PointBlock.chunk == number // CHUNK)
        .where(PointBlock.first_step <= last, PointBlock.last_step >= first)
        .order_by(*order)
        .limit(_BLOCKS_AT_ONCE)
    )
    read: list[Value] = []
    page = statement
    while True:
        with database.read() as session:
            rows = session.execute(page).all()
        for row in rows:
            for _, own in _values(row.columns, row.data, {number}):
                read += [each for each in own if first <= each.step <= last]
        read.sort(key=_place)
        if len(rows) < _BLOCKS_AT_ONCE:
            break
        # Blocks that follow begin no earlier than the last one read.
        begin = rows[-1].first_step
        ready = bisect_left(read, begin, key=lambda each: each.step)
        yield from read[:ready]
        read = read[ready:]
        page = statement.where(tuple_(*order) > tuple_(*rows[-1][:3]))
    yield from read


def reported_after(
    session: Session, job_id: str, after: tuple[int, int], until: tuple[int, int], enough: int
) -> tuple[list[Reported], tuple[int, int]]:
    """Return `enough` values or more, if there are so many, and the place up to which there are no others.

    Args:
        session: a reading transaction.
        job_id: of the job.
        after: (attempt, number of a record) behind which the values begin.
        until: that of the last record.
        enough: values.

    Returns:
        The values in the order of their records, and a place.
    """
    order = (PointBlock.attempt, PointBlock.seq, PointBlock.part)
    statement = (
        select(*order, PointBlock.columns, PointBlock.data)
        .where(PointBlock.job_id == job_id, tuple_(PointBlock.attempt, PointBlock.seq) <= until)
        .order_by(*order)
        .limit(_BLOCKS_AT_ONCE)
    )
    page = statement.where(tuple_(PointBlock.attempt, PointBlock.seq) > after)
    result: list[Reported] = []
    delivery = after
    while True:
        rows = session.execute(page).all()
        for attempt, seq, _, columns, data in rows:
            if (attempt, seq) != delivery:
                if len(result) >= enough:
                    return sorted(result, key=_record), delivery
                delivery = attempt, seq
            for number, own in _values(columns, data):
                result += [Reported(attempt, number, *each) for each in own if (attempt, each.seq) > after]
        if len(rows) < _BLOCKS_AT_ONCE:
            return sorted(result, key=_record), until
        page = statement.where(tuple_(*order) > tuple_(*rows[-1][:3]))


def newest(
    session: Session, job_id: str, attempt: int, numbers: Collection[int], count: int
) -> dict[int, dict[int, float | None]]:
    """Return the last `count` reports of an attempt that have some of the series, newest first: by step and series."""
    statement = (
        select(PointBlock.columns, PointBlock.data)
        .where(PointBlock.job_id == job_id, PointBlock.attempt == attempt, PointBlock.chunk.in_(_chunks(numbers)))
        .order_by(PointBlock.seq.desc(), PointBlock.part.desc())
    )
    reports: dict[int, dict[int, float | None]] = defaultdict(dict)
    wanted = set(numbers)
    for columns, data in session.execute(statement.limit(_BLOCKS_AT_ONCE)):
        for number, own in _values(columns, data, wanted):
            for each in own:
                reports[each.step].setdefault(number, each.value)
    return {step: reports[step] for step in sorted(reports, reverse=True)[:count]}


def times(session: Session, job_id: str, attempt: int, first: int, last: int, most: int) -> list[tuple[int, int]]:
    """Return at most `most` pairs of a step and the time when it was stored, in milliseconds, in order."""
    within = (
        PointBlock.job_id == job_id,
        PointBlock.attempt == attempt,
        PointBlock.chunk == 0,
        PointBlock.first_step <= last,
        PointBlock.last_step >= first,
    )
    count = session.execute(select(func.count()).select_from(PointBlock).where(*within)).scalar_one()
    every = -(-count // max(1, most - 1)) or 1
    place = (func.row_number().over(order_by=PointBlock.first_step) - 1).label("place")
    ranked = select(PointBlock.first_step, PointBlock.last_step, PointBlock.at, place).where(*within).subquery()
    sampled = select(ranked.c.first_step, ranked.c.last_step, ranked.c.at).where(ranked.c.place % every == 0)
    rows = session.execute(sampled.order_by(ranked.c.place)).all()
    samples = {min(row.last_step, last): row.at for row in reversed(rows)}
    if rows and most > 1:
        samples.setdefault(max(rows[0].first_step, first), rows[0].at)
    return sorted(samples.items())


def last_records(session: Session, job_ids: Collection[str]) -> list[tuple[str, int, int]]:
    """Return (job, attempt, the last record that has values) of jobs."""
    last = select(PointBlock.job_id, PointBlock.attempt, func.max(PointBlock.seq)).where(PointBlock.job_id.in_(job_ids))
    return list(session.execute(last.group_by(PointBlock.job_id, PointBlock.attempt)))


# --- thinning out ----------------------------------------------------------------------------------------------------


def counts(session: Session, job_id: str) -> dict[tuple[int, int], dict[int, tuple[int, int]]]:
    """Return, by attempt and series, how many buckets there are of each width, and how many values they have."""
    statement = select(RollupBlock.attempt, RollupBlock.width, RollupBlock.columns, RollupBlock.data)
    result: dict[tuple[int, int], dict[int, tuple[int, int]]] = defaultdict(dict)
    for attempt, width, columns, data in session.execute(statement.where(RollupBlock.job_id == job_id)):
        for number, summary in _summaries(columns, data).items():
            buckets, n = result[attempt, number].get(width, (0, 0))
            result[attempt, number][width] = buckets + 1, n + summary.n
    return result


def thin(session: Session, job_id: str, attempt: int, widths: Mapping[int, int], after: int) -> int | None:
    """Thin out the next deliveries of an attempt, and write them as one; what stays is described in `jobs.expiry`.

    Args:
        session: a writing transaction.
        job_id: of the job.
        attempt: its number.
        widths: the width in steps of the buckets of each long series; others keep all values.
        after: the last record of the deliveries that are thinned out already.

    Returns:
        The new `after`; None at the end.
    """
    of_attempt = (PointBlock.job_id == job_id, PointBlock.attempt == attempt)
    following = select(PointBlock.seq).where(*of_attempt, PointBlock.seq > after).distinct().order_by(PointBlock.seq)
    deliveries = session.execute(following.limit(_BLOCKS_AT_ONCE)).scalars().all()
    if not deliveries:
        return None
    these = (*of_attempt, PointBlock.seq.between(deliveries[0], deliveries[-1]))
    firsts = _first_steps(session, job_id, attempt)
    stored: dict[int, list[Value]] = defaultdict(list)
    for columns, data in session.execute(select(PointBlock.columns, PointBlock.data).where(*these)):
        for number, own in _values(columns, data):
            stored[number] += own
    reports: dict[tuple[int, int], dict[int, float | None]] = defaultdict(dict)
    for number, own in stored.items():
        for each in _thinned(sorted(own, key=_place), widths.get(number), firsts.get(number)):
            reports[each.seq, each.step][number] = each.value
    at = session.execute(select(func.max(PointBlock.at)).where(*these)).scalar_one()
    session.execute(delete(PointBlock).where(*these))
    kept = [Report(seq, step, values) for (seq, step), values in sorted(reports.items())]
    if kept:
        _add_blocks(session, job_id, attempt, kept, {"seq": deliveries[-1], "at": at})
    return deliveries[-1] if len(deliveries) == _BLOCKS_AT_ONCE else None


def _first_steps(session: Session, job_id: str, attempt: int) -> dict[int, int]:
    """Return the first step of each series of an attempt."""
    top = widths(session, job_id, attempt)[-1:]
    of_attempt = (RollupBlock.job_id == job_id, RollupBlock.attempt == attempt)
    statement = select(RollupBlock.columns, RollupBlock.data).where(*of_attempt, RollupBlock.width.in_(top))
    firsts: dict[int, int] = {}
    for columns, data in session.execute(statement):
        for number, summary in _summaries(columns, data).items():
            firsts[number] = min(summary.first_step, firsts.get(number, summary.first_step))
    return firsts


def _thinned(own: Sequence[Value], width: int | None, first: int | None) -> Iterator[Value]:
    """Yield the missing values, the first one, and the last one of each bucket; all where there is no width."""
    later: int | None = None  # the bucket of the value behind
    for each in reversed(own):
        bucket = None if width is None else each.step // width
        if width is None or each.value is None or each.step == first or bucket != later:
            yield each
        if each.value is not None:
            later = bucket


# --- bytes -----------------------------------------------------------------------------------------------------------


def _values(columns: bytes, data: bytes, wanted: Collection[int] | None = None) -> Iterator[tuple[int, list[Value]]]:
    """Yield the series of a block, or those of them that are wanted, with their values."""
    numbers = _unpacked("H", columns)
    count = len(data) // (_WORD * (2 + len(numbers)))
    size = _WORD * count
    seqs, steps = _unpacked("q", data[:size]), _unpacked("q", data[size : 2 * size])
    for place, number in enumerate(numbers, start=2):
        if wanted is None or number in wanted:
            reported = _unpacked("d", data[place * size : (place + 1) * size])
            yield (
                number,
                [
                    Value(step, seq, None if math.isnan(value) else value)
                    for step, seq, value in zip(steps, seqs, reported, strict=True)
                ],
            )


def _summaries(columns: bytes, data: bytes) -> dict[int, Summary]:
    return dict(zip(_unpacked("H", columns), map(Summary._make, _SUMMARY.iter_unpack(data)), strict=True))


def _packed(code: str, values: Iterable[float]) -> bytes:
    numbers = array(code, values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _unpacked(code: str, data: bytes) -> Any:
    numbers = array(code)
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _chunks(numbers: Iterable[int]) -> set[int]:
    return {number // CHUNK for number in numbers}


def _place(value: Value) -> tuple[int, int]:
    return value.step, value.seq


def _record(value: Reported) -> tuple[int, int]:
    return value.attempt, value.seq
