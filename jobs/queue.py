"""The queue: which due jobs may start now, and in which order they are claimed.

Jobs are claimed by priority.  Among jobs of equal priority those of the key with the least recent use of devices come
first, then the oldest (fair share).  The use of a day counts half as much after `fair_share_days` (jobs.policies), and
running jobs count from their start.  A key that has waited for a day, without any job that ran, comes first once.

A job whose key uses as many devices as it may, or whose project uses its GPUs (jobs.limits), is due, and is not ready:
it waits, and nothing waits for it.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from sqlalchemy import (
    CTE,
    ColumnElement,
    CompoundSelect,
    Select,
    Subquery,
    and_,
    case,
    func,
    literal,
    not_,
    or_,
    select,
    union_all,
)
from sqlalchemy.orm import Session

from jobs import policies
from jobs.database import now_ms, within
from jobs.eligibility import NEEDS, Needs, is_due
from jobs.models import SEES_HIDDEN, Attempt, DeviceUse, Job, Key, Policy, Project
from jobs.shared_reads import once
from jobs.status import Status
from jobs.usage import DAY_MS

_IS_WAITING: Final = Job.status == Status.QUEUED
_QUEUE: Final = "queue"  # in `Session.info`
_LONGEST_WAIT_MS: Final = DAY_MS  # of a key of whose jobs none runs
_OLDEST_DAYS: Final = 400
_MOST_LANES: Final = 100  # keys that a query looks at one by one; SQLite takes at most 500 parts
MOST_COUNTED: Final = 1_000  # jobs ahead of another one; a larger number is an estimate
_SIZES_SECONDS: Final = 10.0


class Place(Protocol):
    """A job's place in the queue."""

    @property
    def created_by(self) -> str | None: ...

    @property
    def priority(self) -> int: ...

    @property
    def queue_place(self) -> int: ...


@dataclass(frozen=True)
class Use:
    """What the jobs of a key or of a project use, and may use.

    Attributes:
        devices: that its running jobs use; of a key, a job without GPUs counts as one.
        limit: most devices at once; None for no limit.
    """

    devices: int = 0
    limit: int | None = None

    @property
    def room(self) -> int | None:
        """The devices that further jobs may use; None for any number."""
        return None if self.limit is None else self.limit - self.devices


@dataclass(frozen=True)
class Queue:
    """The queue as a transaction sees it.

    Attributes:
        uses: by the id of the key; those with waiting or running jobs.
        ranks: by the id of the key, the lowest first; empty where all keys are equal.
        projects: by the id of the project; those with a limit.
    """

    uses: Mapping[str, Use]
    ranks: Mapping[str, int] = field(default_factory=dict)
    projects: Mapping[str, Use] = field(default_factory=dict)

    def is_ready(self) -> ColumnElement[bool]:
        """Return the condition for a job that a worker may claim now: it is due, and within all limits."""
        keys = _by_room(self.uses)
        projects = _by_room(self.projects)
        beyond = [and_(owner_of_job().in_(ids), devices_of_job() > room) for room, ids in keys.items()]
        for room, ids in projects.items():  # a job without GPUs is within each limit, also where a new one is passed
            beyond.append(and_(Job.project_id.in_(ids), gpus_of_job() > max(0, room)))
        return and_(is_due(), not_(or_(*beyond))) if beyond else is_due()

    @property
    def order(self) -> tuple[ColumnElement[Any], ...]:
        """The order in which jobs are claimed."""
        ranks = (self._rank().asc(),) if self.ranks else ()
        return Job.priority.desc(), *ranks, Job.queue_place.asc()

    def first(self, *conditions: ColumnElement[bool], count: int = 1) -> Select[str]:
        """Return the query of the ids of the first ready jobs that meet the conditions, in their order.

        The jobs of each key are a part of an index in their order: the database reads the first ones of each, however
        many wait.
        """
        jobs = self._first([Job.id], conditions, count)
        order = (jobs.c.priority.desc(), jobs.c.rank.asc(), jobs.c.queue_place.asc())
        return select(jobs.c.id).order_by(*order).limit(count)

    def first_places(self, *conditions: ColumnElement[bool], count: int) -> Select[Any]:
        """Return the query of the first ready jobs that meet the conditions: their place, as `place_of`, and needs."""
        jobs = self._first(NEEDS, conditions, count)
        place = -jobs.c.priority, jobs.c.rank, jobs.c.queue_place
        return (
            select(*place, *(jobs.c[name] for name in Needs._fields))
            .order_by(*(each.asc() for each in place))
            .limit(count)
        )

    def _first(self, shown: Iterable[Any], conditions: Iterable[ColumnElement[bool]], count: int) -> Subquery:
        ready = (self.is_ready(), *conditions)
        columns = *shown, Job.priority, Job.queue_place
        if len(self.ranks) > _MOST_LANES:
            each = select(*columns, self._rank().label("rank")).where(*ready)
            return each.order_by(*self.order).limit(count).subquery()
        lanes = []
        for owner, rank in self.ranks.items() or [(None, 0)]:
            lane = select(*columns, literal(rank).label("rank")).where(*ready)
            if owner is not None:
                lane = lane.where(Job.created_by == owner if owner else Job.created_by.is_(None))
            lanes.append(select(lane.order_by(Job.priority.desc(), Job.queue_place.asc()).limit(count).subquery()))
        return union_all(*lanes).subquery()

    def is_before(self, job: Place) -> ColumnElement[bool]:
        """Return the condition for jobs that are claimed before a job."""
        return or_(Job.priority > job.priority, self._is_before_at_its_priority(job))

    def _is_before_at_its_priority(self, job: Place) -> ColumnElement[bool]:
        is_older = Job.queue_place < job.queue_place
        if self.ranks:
            rank = self._rank_of(job)
            is_older = or_(self._rank() < rank, and_(self._rank() == rank, is_older))
        return and_(Job.priority == job.priority, is_older)

    def ranges_before(self, job: Place) -> list[ColumnElement[bool]]:
        """Return conditions for the waiting jobs that are claimed before a job; no two hold for one job.

        Each is a range of the index of claims, or of that of the claims of a key.
        """
        return [Job.priority > job.priority, *self._ranges_at_its_priority(job)]

    def ranges_passing(self, job: Place) -> list[ColumnElement[bool]]:
        """Return those for later jobs that are claimed before a job, since their keys have used less."""
        is_later = Job.queue_place > job.queue_place
        return [and_(each, is_later) for each in self._ranges_at_its_priority(job)] if self.ranks else []

    def _ranges_at_its_priority(self, job: Place) -> list[ColumnElement[bool]]:
        rank = self._rank_of(job)
        if not rank < len(self.ranks) <= _MOST_LANES:
            return [self._is_before_at_its_priority(job)]
        is_equal, is_older = Job.priority == job.priority, Job.queue_place < job.queue_place
        ranges = []
        for owner, other in self.ranks.items():
            of_owner = Job.created_by == owner if owner else Job.created_by.is_(None)
            if other <= rank:
                ranges.append(and_(of_owner, is_equal) if other < rank else and_(of_owner, is_equal, is_older))
        return ranges

    def place_of(self, job: Place) -> tuple[int, int, int]:
        """Return the place of a job for comparisons: the lowest is claimed first."""
        return -job.priority, self._rank_of(job), job.queue_place

    def _rank(self) -> ColumnElement[int]:
        return case(dict(self.ranks), value=owner_of_job(), else_=len(self.ranks))

    def _rank_of(self, job: Place) -> int:
        return self.rank_of(job.created_by or "")

    def rank_of(self, owner: str) -> int:
        """Return the rank of a key's jobs; an empty id is that of jobs of no key."""
        return self.ranks.get(owner, len(self.ranks)) if self.ranks else 0

    def use_of(self, owner: str | None) -> Use:
        """Return what the jobs of a key use."""
        return self.uses.get(owner or "", Use())

    def use_of_project(self, project_id: str) -> Use:
        """Return the GPUs that the jobs of a project use."""
        return self.projects.get(project_id, Use())


def _by_room(uses: Mapping[str, Use]) -> dict[int, list[str]]:
    """Return the ids of those with a limit, by the devices that further jobs may use."""
    by_room: dict[int, list[str]] = defaultdict(list)
    for each, use in uses.items():
        if use.room is not None:
            by_room[use.room].append(each)
    return by_room


@dataclass(frozen=True)
class Ahead:
    """A number of jobs that are claimed before another one; an estimate has two digits that count.

    Attributes:
        by_needs: the same number by what the jobs need; empty for an estimate.
    """

    count: int
    is_estimate: bool = False
    by_needs: Mapping[Needs, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"about {self.count:,}" if self.is_estimate else str(self.count)


def num_ahead(session: Session, job: Job, *, is_one_of_many: bool = False) -> Ahead:
    """Return the number of ready jobs of its pool that are claimed before a job.

    Beyond `MOST_COUNTED` it is an estimate by the sizes of the queue, which are read at most every 10 s.

    Args:
        session: a transaction.
        job: it waits.
        is_one_of_many: whether the transaction needs the number of several jobs: it then reads the front of the queue,
            once, in place of a count for each.
    """
    queue = job_queue(session)
    sizes = _sizes.recent(session)
    if sizes is not None and (estimate := _estimate(queue, sizes, job)) > 2 * MOST_COUNTED:
        return _rounded(estimate)
    if is_one_of_many:
        by_needs = _front(session, job.pool).before(queue.place_of(job))
    else:
        by_needs = _counted(session, job, queue.ranges_before(job))
    count = sum(by_needs.values())
    if count <= MOST_COUNTED:
        return Ahead(count, by_needs=by_needs)
    return _rounded(max(count, _estimate(queue, _sizes.read(session), job)))


def num_passing(session: Session, job: Job, *, is_one_of_many: bool = False) -> Ahead:
    """Return the number of later jobs among those ahead, as `num_ahead` counts them."""
    queue = job_queue(session)
    if not (ranges := queue.ranges_passing(job)):
        return Ahead(0)
    if is_one_of_many:
        place, front = queue.place_of(job), _front(session, job.pool).places
        if len(front) <= MOST_COUNTED or place <= front[-1]:
            return Ahead(sum(each[-1] > job.queue_place for each in front[: bisect_left(front, place)]))
        return _rounded(_estimate(queue, _sizes.read(session), job, is_passing=True))
    count = sum(_counted(session, job, ranges).values())
    return Ahead(count) if count <= MOST_COUNTED else _rounded(count)


@dataclass(frozen=True)
class _Front:
    """The first ready jobs of a pool, one more than are counted.

    Attributes:
        places: of the jobs, in order.
        by_needs: for each need, the indices in `places` of the jobs that have it.
    """

    places: list[tuple[int, int, int]]
    by_needs: Mapping[Needs, list[int]]

    def before(self, place: tuple[int, int, int]) -> dict[Needs, int]:
        """Return the number of jobs before a place, by what they need."""
        end = bisect_left(self.places, place)
        return {needs: bisect_left(indices, end) for needs, indices in self.by_needs.items()}


def _front(session: Session, pool: str) -> _Front:

    def read() -> _Front:
        rows = session.execute(job_queue(session).first_places(Job.pool == pool, count=MOST_COUNTED + 1)).all()
        by_needs: dict[Needs, list[int]] = defaultdict(list)
        for index, row in enumerate(rows):
            by_needs[Needs(*row[3:])].append(index)
        return _Front([(row[0], row[1], row[2]) for row in rows], by_needs)

    return once(session, ("front of the queue", pool), read)


def _counted(session: Session, job: Job, ranges: Sequence[ColumnElement[bool]]) -> dict[Needs, int]:
    """Return the number of ready jobs in ranges of the queue, by what they need; in all one above `MOST_COUNTED`."""
    ready = job_queue(session).is_ready(), Job.pool == job.pool
    parts = [select(*NEEDS).where(*ready, each).limit(MOST_COUNTED + 1).subquery() for each in ranges]
    jobs = union_all(*(select(part) for part in parts)).limit(MOST_COUNTED + 1).subquery()
    columns = [jobs.c[name] for name in Needs._fields]
    with within(session, None):  # the jobs of all projects share the workers
        rows = session.execute(select(*columns, func.count()).group_by(*columns)).all()
    return {Needs(*row[:-1]): row[-1] for row in rows}


def _rounded(count: int) -> Ahead:
    return Ahead(round(count, 2 - len(str(count))), is_estimate=True)


class _Size(NamedTuple):
    """The waiting jobs of a pool, a priority and a key, with the first and the last of their places."""

    pool: str
    priority: int
    owner: str
    num_jobs: int
    first: int
    last: int


def _estimate(queue: Queue, sizes: Sequence[_Size], job: Job, *, is_passing: bool = False) -> int:
    """Return about how many jobs are before a job, or how many of these are later ones.

    The jobs of a key and a priority have evenly distributed places.
    """
    priority, rank, place = queue.place_of(job)
    total = 0.0
    for size in sizes:
        other = -size.priority, queue.rank_of(size.owner)
        if size.pool != job.pool or other > (priority, rank):
            continue
        older = min(1.0, max(0.0, (place - size.first) / max(1, size.last - size.first)))
        if is_passing:
            total += size.num_jobs * (1 - older) if other[0] == priority and other[1] < rank else 0
        else:
            total += size.num_jobs * (older if other == (priority, rank) else 1.0)
    return round(total)


class _Sizes:
    """The sizes of the queues of this process's databases, read at most every 10 s."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: WeakKeyDictionary[Any, tuple[float, list[_Size]]] = WeakKeyDictionary()  # by pool of connections

    def recent(self, session: Session) -> list[_Size] | None:
        """Return the sizes, if they were read within the last 10 s."""
        at, sizes = self._read.get(session.connection().engine.pool, (0.0, []))
        return sizes if at and time.monotonic() - at < _SIZES_SECONDS else None

    def read(self, session: Session) -> list[_Size]:
        """Return the sizes, and read them if they are older; other threads of this process wait for that."""
        with self._lock:
            if (sizes := self.recent(session)) is not None:
                return sizes
            lane = Job.pool, Job.priority, Job.created_by
            facts = func.count(), func.min(Job.queue_place), func.max(Job.queue_place)
            waiting = select(*lane, *facts).where(_IS_WAITING).group_by(*lane)
            with within(session, None):
                rows = session.execute(waiting, execution_options=SEES_HIDDEN)
            sizes = [_Size(pool, priority, owner or "", *rest) for pool, priority, owner, *rest in rows]
            self._read[session.connection().engine.pool] = time.monotonic(), sizes
            return sizes


_sizes = _Sizes()


def owner_of_job() -> ColumnElement[str]:
    """Return the id of the key that a job is of; empty for none."""
    return func.coalesce(Job.created_by, "")


def devices_of_job() -> ColumnElement[int]:
    """Return the number of devices that a job uses on all its nodes; one for a job without GPUs."""
    return case((Job.gpus * Job.nodes > 1, Job.gpus * Job.nodes), else_=1)


def gpus_of_job() -> ColumnElement[int]:
    """Return the number of GPUs that a job uses on all its nodes."""
    return Job.gpus * Job.nodes


def job_queue(session: Session, *, is_fresh: bool = False) -> Queue:
    """Return the queue as it is at the first call within the transaction, or now if `is_fresh`."""
    queue: Queue | None = session.info.get(_QUEUE)
    if queue is None or is_fresh:
        with within(session, None):  # the devices are shared by all projects
            queue = session.info[_QUEUE] = _read(session)
    return queue


@cache
def _parts() -> CompoundSelect[Any]:
    """Return the query of all parts, since each one alone takes a round trip to the database.

    It is made once: making it takes seven times as long as the answer of a small SQLite database.
    """
    held_ms = devices_of_job() * (now_ms() - func.coalesce(Attempt.started_at, now_ms()))
    running = (
        select(literal("running"), Job.created_by, func.sum(devices_of_job()), func.sum(held_ms))
        .outerjoin(Attempt, and_(Attempt.job_id == Job.id, Attempt.number == Job.attempt))
        .where(Job.status == Status.RUNNING)
        .group_by(Job.created_by)
    )
    owners = _owners_waiting()
    oldest = select(func.min(Job.created_at)).where(_IS_WAITING, Job.created_by == owners.c.created_by)
    of_none = select(func.min(Job.created_at).label("oldest")).where(_IS_WAITING, Job.created_by.is_(None)).subquery()
    by_day = select(literal("use"), DeviceUse.owner_id, DeviceUse.day, DeviceUse.gpu_ms + DeviceUse.cpu_ms)
    ended = select(literal("ended"), DeviceUse.owner_id, literal(0), func.max(DeviceUse.updated_at))
    in_project = select(func.coalesce(func.sum(gpus_of_job()), 0))
    in_project = in_project.where(Job.status == Status.RUNNING, Job.project_id == Project.id)
    of_project = select(literal("project"), Project.id, in_project.scalar_subquery(), Project.max_gpus)
    return union_all(
        running,
        select(literal("waiting"), owners.c.created_by, literal(0), oldest.scalar_subquery()).where(
            owners.c.created_by.is_not(None)
        ),
        select(literal("waiting"), literal(""), literal(0), of_none.c.oldest).where(of_none.c.oldest.is_not(None)),
        by_day.where(DeviceUse.day > now_ms() / DAY_MS - _OLDEST_DAYS),
        ended.group_by(DeviceUse.owner_id),
        select(literal("limit"), Key.id, literal(0), Key.max_devices).where(Key.max_devices.is_not(None)),
        of_project.where(Project.max_gpus.is_not(None)),
        select(literal("policy"), Policy.name, literal(0), Policy.value),
        select(literal("now"), literal(""), literal(0), now_ms()),
    )


def _read(session: Session) -> Queue:
    rows: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for part, name, first, second in session.execute(_parts(), execution_options=SEES_HIDDEN):
        rows[part][name or ""].append((float(first), float(second)))
    rules = policies.of_rows({name: row[0][1] for name, row in rows["policy"].items()})
    uses = {}
    for owner in sorted(rows["running"].keys() | rows["waiting"].keys()):
        (devices, _), *_ = rows["running"].get(owner) or [(0, 0)]
        limit = rows["limit"][owner][0][1] if owner in rows["limit"] else rules.key_devices if owner else None
        uses[owner] = Use(int(devices), None if limit is None else int(limit))
    projects = {each: Use(int(gpus), int(limit)) for each, ((gpus, limit), *_) in rows["project"].items()}
    return Queue(uses, _ranks(rows, rules.fair_share_days), projects)


def _owners_waiting() -> CTE:
    """Return the keys with waiting jobs, and a last null: each step reads the next one from an index."""
    keys = select(func.min(Job.created_by).label("created_by")).where(_IS_WAITING).cte("owners", recursive=True)
    later = select(func.min(Job.created_by)).where(_IS_WAITING, Job.created_by > keys.c.created_by)
    return keys.union_all(select(later.scalar_subquery()).where(keys.c.created_by.is_not(None)))


def _ranks(rows: Mapping[str, Mapping[str, list[tuple[float, float]]]], half_life: int) -> dict[str, int]:
    """Return the ranks of the keys with waiting jobs; those of equal use have the same rank."""
    owners, now = rows["waiting"], rows["now"][""][0][1]
    if len(owners) < 2 or not half_life:
        return {}
    today = now // DAY_MS
    keys: dict[str, tuple[bool, float]] = {}
    for owner, ((_, oldest), *_) in owners.items():
        used = sum(ms * 0.5 ** ((today - day) / half_life) for day, ms in rows["use"].get(owner, ()))
        used += sum(max(1.0, ms) for _, ms in rows["running"].get(owner, ()))
        last = max([oldest, *(at for _, at in rows["ended"].get(owner, ()))])
        is_starved = owner not in rows["running"] and now - last > _LONGEST_WAIT_MS
        keys[owner] = (not is_starved, used)
    order = sorted(set(keys.values()))
    return {owner: order.index(key) for owner, key in keys.items()}
