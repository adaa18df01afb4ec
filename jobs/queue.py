"""The queue: which due jobs may start now, and in which order they are claimed.

A job whose key uses as many devices as it may (jobs.limits) is due, and is not ready: it waits, and nothing waits for
it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from sqlalchemy import ColumnElement, CompoundSelect, and_, case, func, literal, not_, or_, select, union_all
from sqlalchemy.orm import Session

from jobs import policies
from jobs.eligibility import is_due
from jobs.models import SEES_HIDDEN, Job, Key, Policy
from jobs.status import Status

_QUEUE: Final = "queue"  # in `Session.info`


class Place(Protocol):
    """A job's place in the queue."""

    @property
    def priority(self) -> int: ...

    @property
    def queue_place(self) -> int: ...


@dataclass(frozen=True)
class Use:
    """What the jobs of a key use, and may use.

    Attributes:
        devices: that its running jobs use; a job without GPUs counts as one.
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
    """

    uses: Mapping[str, Use]

    def is_ready(self) -> ColumnElement[bool]:
        """Return the condition for a job that a worker may claim now: it is due, and within the limit of its key."""
        by_room: dict[int, list[str]] = defaultdict(list)
        for owner, use in self.uses.items():
            if use.room is not None:
                by_room[use.room].append(owner)
        if not by_room:
            return is_due()
        beyond = (and_(owner_of_job().in_(owners), devices_of_job() > room) for room, owners in by_room.items())
        return and_(is_due(), not_(or_(*beyond)))

    @property
    def order(self) -> tuple[ColumnElement[Any], ...]:
        """The order in which jobs are claimed: by priority, then age."""
        return Job.priority.desc(), Job.queue_place.asc()

    def is_before(self, job: Place) -> ColumnElement[bool]:
        """Return the condition for jobs that are claimed before a job."""
        return or_(Job.priority > job.priority, and_(Job.priority == job.priority, Job.queue_place < job.queue_place))

    def place_of(self, job: Place) -> tuple[int, int]:
        """Return the place of a job for comparisons: the lowest is claimed first."""
        return -job.priority, job.queue_place

    def use_of(self, owner: str | None) -> Use:
        """Return what the jobs of a key use."""
        return self.uses.get(owner or "", Use())


def owner_of_job() -> ColumnElement[str]:
    """Return the id of the key that a job is of; empty for none."""
    return func.coalesce(Job.created_by, "")


def devices_of_job() -> ColumnElement[int]:
    """Return the number of devices that a job uses on all its nodes; one for a job without GPUs."""
    return case((Job.gpus * Job.nodes > 1, Job.gpus * Job.nodes), else_=1)


def job_queue(session: Session, *, is_fresh: bool = False) -> Queue:
    """Return the queue as it is at the first call within the transaction, or now if `is_fresh`."""
    queue: Queue | None = session.info.get(_QUEUE)
    if queue is None or is_fresh:
        queue = session.info[_QUEUE] = _read(session)
    return queue


def _read(session: Session) -> Queue:
    """Read all parts by one statement, since each one takes a round trip to the database."""
    running = select(literal("running"), Job.created_by, func.sum(devices_of_job()))
    waiting = select(literal("waiting"), Job.created_by, func.count())
    parts: CompoundSelect[Any] = union_all(
        running.where(Job.status == Status.RUNNING).group_by(Job.created_by),
        waiting.where(Job.status == Status.QUEUED).group_by(Job.created_by),
        select(literal("limit"), Key.id, Key.max_devices).where(Key.max_devices.is_not(None)),
        select(literal("policy"), Policy.name, Policy.value),
    )
    values: dict[str, dict[str, float]] = defaultdict(dict)
    for part, name, value in session.execute(parts, execution_options=SEES_HIDDEN):
        values[part][name or ""] = float(value)
    default = policies.of_rows(values["policy"]).key_devices
    uses = {}
    for owner in sorted(values["running"].keys() | values["waiting"].keys()):
        limit = values["limit"].get(owner, default) if owner else None
        uses[owner] = Use(int(values["running"].get(owner, 0)), None if limit is None else int(limit))
    return Queue(uses)
