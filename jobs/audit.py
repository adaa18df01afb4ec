"""The audit: replays every job's events and compares the result with its rows.

Each batch of jobs is read in a transaction of its own, so an audit can run beside normal work.  It changes nothing.
Deleted jobs are audited as well until their removal begins.  Then only their `Deletion` is compared with what is left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs import point_blocks, weights
from jobs.database import Database
from jobs.models import (
    SEES_HIDDEN,
    Attempt,
    AttemptDevice,
    AttemptNode,
    Checkpoint,
    Deletion,
    Event,
    Job,
    Log,
    Point,
    Series,
)
from jobs.status import INFRASTRUCTURE, LEGAL, TERMINAL, Status
from jobs.storage import Storage

_BATCH = 200
_OF_AN_ATTEMPT = frozenset({"started", "checkpoint"})  # events that only an open attempt writes


@dataclass(frozen=True)
class Finding:
    """A contradiction between events and rows; `rule` is for programs, `message` for people."""

    job_id: str
    rule: str
    message: str


@dataclass
class Report:
    """The findings of an audit, and the numbers of rows that it read."""

    jobs: int = 0
    events: int = 0
    attempts: int = 0
    deletions: int = 0
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class _Ledger:
    """The rows of one job that the rules read; `last_point` and `last_log` hold a sequence number by attempt."""

    job: Job
    events: Sequence[Event]
    attempts: Sequence[Attempt]
    checkpoints: Sequence[Checkpoint]
    last_point: dict[int, int]
    last_log: dict[int, int]
    devices: Sequence[AttemptDevice] = ()
    nodes: Sequence[AttemptNode] = ()


def audit(database: Database, storage: Storage | None = None) -> Report:
    """Audit every job in the order of their ids, then deleted jobs, and the folders of the storage if it is given.

    Raises:
        StorageUnavailable: the storage does not respond.
    """
    report = Report()
    _of_the_jobs(database, report)
    _of_the_deletions(database, report)
    if storage is not None:
        report.findings += _of_the_files(database, storage)
    return report


def _of_the_jobs(database: Database, report: Report) -> None:
    after = ""
    while True:
        with database.read() as session:
            ledgers = _read(session, after)
        if not ledgers:
            return
        after = ledgers[-1].job.id
        for ledger in ledgers:
            report.jobs += 1
            report.events += len(ledger.events)
            report.attempts += len(ledger.attempts)
            report.findings += check(ledger)


def check(ledger: _Ledger) -> list[Finding]:
    """Return the findings of one job."""
    if ledger.job.status in TERMINAL and ledger.events and ledger.events[0].seq > 1:  # old ones are removed
        return [Finding(ledger.job.id, *problem) for problem in _of_the_rest(ledger)]
    replay = _Replay()
    problems = [*replay.run(ledger.events)]
    problems += _of_the_row(ledger.job, replay, len(ledger.events))
    problems += _of_the_attempts(ledger, replay)
    problems += _of_the_devices(ledger)
    problems += _of_the_nodes(ledger)
    problems += _of_the_deliveries(ledger, replay)
    return [Finding(ledger.job.id, rule, message) for rule, message in problems]


def _of_the_rest(ledger: _Ledger) -> _Problems:
    """Yield the problems of an ended job whose old events are removed (jobs.expiry)."""
    numbers = [event.seq for event in ledger.events]
    if numbers != list(range(numbers[0], ledger.job.event_seq + 1)):
        yield "numbering", f"the row counts {ledger.job.event_seq} events, but the last ones are {numbers}"
    if ledger.job.status not in [event.data.get("status") for event in ledger.events]:
        yield "status", f"the row is {ledger.job.status}, but no event that is left leads to it"
    if open_ := [attempt.number for attempt in ledger.attempts if attempt.ended_at is None]:
        yield "open_attempts", f"the attempts {open_} are open, but the job is {ledger.job.status}"
    yield from _of_the_devices(ledger)
    yield from _of_the_nodes(ledger)


# --- reading -------------------------------------------------------------------------------------------------------


def _read(session: Session, after: str) -> list[_Ledger]:
    purging = select(Deletion.job_id).where(Deletion.purge_began_at.is_not(None))
    statement = select(Job).where(Job.id > after, Job.id.not_in(purging)).order_by(Job.id).limit(_BATCH)
    jobs = list(session.execute(statement, execution_options=SEES_HIDDEN).scalars())
    ids = [job.id for job in jobs]
    events = _by_job(session.execute(select(Event).where(Event.job_id.in_(ids)).order_by(Event.seq)).scalars())
    attempts = _by_job(
        session.execute(select(Attempt).where(Attempt.job_id.in_(ids)).order_by(Attempt.number)).scalars()
    )
    registered = select(Checkpoint).where(Checkpoint.job_id.in_(ids))
    checkpoints = _by_job(session.execute(registered, execution_options=SEES_HIDDEN).scalars())
    devices = _by_job(session.execute(select(AttemptDevice).where(AttemptDevice.job_id.in_(ids))).scalars())
    nodes = _by_job(session.execute(select(AttemptNode).where(AttemptNode.job_id.in_(ids))).scalars())
    of_points = (
        select(Series.job_id, Point.attempt, func.max(Point.seq))
        .join(Point, Point.series_id == Series.id)
        .where(Series.job_id.in_(ids))
        .group_by(Series.job_id, Point.attempt)
    )
    points = _last_by_attempt([*session.execute(of_points), *point_blocks.last_records(session, ids)])
    logs = _last_by_attempt(
        session.execute(
            select(Log.job_id, Log.attempt, func.max(Log.seq))
            .where(Log.job_id.in_(ids))
            .group_by(Log.job_id, Log.attempt)
        )
    )
    return [
        _Ledger(
            job,
            events[job.id],
            attempts[job.id],
            checkpoints[job.id],
            points[job.id],
            logs[job.id],
            devices[job.id],
            nodes[job.id],
        )
        for job in jobs
    ]


def _by_job(rows: Iterable[Any]) -> dict[str, list[Any]]:
    by_job: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        by_job[row.job_id].append(row)
    return by_job


def _last_by_attempt(rows: Iterable[Any]) -> dict[str, dict[int, int]]:
    by_job: dict[str, dict[int, int]] = defaultdict(dict)
    for job_id, attempt, last in rows:
        by_job[job_id][attempt] = max(last, by_job[job_id].get(attempt, last))
    return by_job


# --- deleted jobs ----------------------------------------------------------------------------------------------------


def _of_the_deletions(database: Database, report: Report) -> None:
    """Compare the hidden jobs with the records of deletions."""
    columns = (Deletion.job_id, Deletion.restored_at, Deletion.purged_at)
    with database.read() as session:
        records = session.execute(select(*columns).order_by(Deletion.id)).all()
        hidden = select(Job.id).where(Job.hidden_at.is_not(None))
        hidden_ids = set(session.execute(hidden, execution_options=SEES_HIDDEN).scalars())
        named = select(Job.id).where(Job.id.in_(select(Deletion.job_id)))
        present = set(session.execute(named, execution_options=SEES_HIDDEN).scalars())
    report.deletions = len(records)
    open_ids = {job_id for job_id, restored_at, purged_at in records if restored_at is None and purged_at is None}
    for job_id in sorted(hidden_ids - open_ids):
        report.findings.append(Finding(job_id, "deletions", "the job is hidden, but no record tells who deleted it"))
    for job_id in sorted(open_ids - hidden_ids):
        report.findings.append(Finding(job_id, "deletions", "the job is recorded as deleted, but it is not hidden"))
    for job_id in sorted({job_id for job_id, _, purged_at in records if purged_at is not None} & present):
        report.findings.append(Finding(job_id, "deletions", "the job is recorded as removed, but its row is there"))


def _of_the_files(database: Database, storage: Storage) -> list[Finding]:
    """Return a finding for each folder of a job that is no longer, or never was, in the database."""
    folders = sorted(set(storage.job_ids()) - {weights.FOLDER})
    findings = []
    for start in range(0, len(folders), _BATCH):
        batch = folders[start : start + _BATCH]
        statement = select(Job.id).where(Job.id.in_(batch))
        with database.read() as session:
            owned = set(session.execute(statement, execution_options=SEES_HIDDEN).scalars())
        for job_id in batch:
            if job_id not in owned and (count := sum(1 for _ in storage.keys(job_id))):  # no purge removes it now
                message = f"the storage has {count} files of the job, but the database has no such job"
                findings.append(Finding(job_id, "files", message))
    return findings


# --- the rules -----------------------------------------------------------------------------------------------------

_Problems = Iterator[tuple[str, str]]


class _Replay:
    """A job's state, computed from its events alone."""

    def __init__(self) -> None:
        self.status: str | None = None
        self.attempt = 0
        self.is_open = False
        self.saved: set[tuple[int, int]] = set()  # (attempt, step) of checkpoints

    def run(self, events: Sequence[Event]) -> _Problems:
        """Replay the events in order; yield the problems."""
        for place, event in enumerate(events, start=1):
            if event.seq != place:
                yield "numbering", f"event {place} has the number {event.seq}"
                return  # every later event would repeat this problem
            yield from self._take(event)

    def _take(self, event: Event) -> _Problems:
        if event.type in _OF_AN_ATTEMPT:
            if not self.is_open or event.data.get("attempt") != self.attempt:
                yield (
                    "fence",
                    f"event {event.seq}, {event.type}, is of attempt {event.data.get('attempt')}, which is not open",
                )
            if event.type == "checkpoint":
                self.saved.add((event.data["attempt"], event.data["step"]))
        elif (after := event.data.get("status")) is not None:  # the others hold facts of the run by any name
            yield from self._move(event, after)

    def _move(self, event: Event, after: str) -> _Problems:
        before, self.status = self.status, after
        if before is None:
            if event.type != "submitted" or after not in (Status.QUEUED, Status.BLOCKED):
                yield "transition", f"event {event.seq}: the first status is {after}; expected queued or blocked"
        elif before in TERMINAL:
            yield "two_ends", f"event {event.seq}: {after} follows {before}, which is terminal"
        elif after not in LEGAL[Status(before)]:
            yield "transition", f"event {event.seq}: there is no transition from {before} to {after}"
        yield from self._count(event, before, after)

    def _count(self, event: Event, before: str | None, after: str) -> _Problems:
        number = event.data.get("attempt")
        if after == Status.RUNNING:
            if number != self.attempt + 1:
                yield "attempts", f"event {event.seq} begins attempt {number} after attempt {self.attempt}"
            self.attempt, self.is_open = number or self.attempt + 1, True
        elif before == Status.RUNNING:
            if number != self.attempt:
                yield "attempts", f"event {event.seq} ends attempt {number} while {self.attempt} is open"
            self.is_open = False


def _of_the_row(job: Job, replay: _Replay, num_events: int) -> _Problems:
    if job.event_seq != num_events:
        yield "numbering", f"the row counts {job.event_seq} events, but there are {num_events}"
    if job.status != replay.status:
        yield "status", f"the row is {job.status}, but its events lead to {replay.status}"
    if job.attempt != replay.attempt:
        yield "attempts", f"the row is at attempt {job.attempt}, but its events are at {replay.attempt}"
    if (job.ended_at is not None) != (job.status in TERMINAL):
        yield "status", f"the row is {job.status}, but its end is {'set' if job.ended_at else 'not set'}"


def _of_the_attempts(ledger: _Ledger, replay: _Replay) -> _Problems:
    numbers = [attempt.number for attempt in ledger.attempts]
    if numbers != list(range(1, replay.attempt + 1)):
        yield "attempts", f"there are rows of the attempts {numbers}, but events of 1 to {replay.attempt}"
    open_ = [attempt.number for attempt in ledger.attempts if attempt.ended_at is None]
    expected = [replay.attempt] if replay.is_open else []
    if open_ != expected:
        yield "open_attempts", f"the attempts {open_} are open; by the events {expected} should be"
    if open_ and ledger.job.status != Status.RUNNING:
        yield "open_attempts", f"attempt {open_[-1]} is open, but the job is {ledger.job.status}"
    lost = sum(attempt.end_reason in INFRASTRUCTURE for attempt in ledger.attempts)
    if ledger.job.failures != lost:
        yield "failures", f"the row counts {ledger.job.failures} infrastructure failures, but there were {lost}"


def _of_the_devices(ledger: _Ledger) -> _Problems:
    """Yield devices that an ended attempt still holds, or an open one has released, or that are too few or too many."""
    for attempt in ledger.attempts:
        devices = [each for each in ledger.devices if each.attempt == attempt.number]
        held = [each.device for each in devices if each.released_at is None]
        if held and attempt.ended_at is not None:
            yield "devices", f"attempt {attempt.number} has ended, but holds {', '.join(held)}"
        elif len(held) < len(devices) and attempt.ended_at is None:
            yield "devices", f"attempt {attempt.number} is open, but has released a device"
        expected = ledger.job.gpus * ledger.job.nodes
        if devices and len(devices) != expected:
            yield "devices", f"attempt {attempt.number} has {len(devices)} devices, but the job needs {expected}"


def _of_the_nodes(ledger: _Ledger) -> _Problems:
    """Yield attempts of a job of several nodes that have too few or too many workers, or one twice."""
    expected = ledger.job.nodes if ledger.job.nodes > 1 else 0
    for attempt in ledger.attempts:
        ids = {each.worker_id for each in ledger.nodes if each.attempt == attempt.number}
        if len(ids) != expected:
            yield "nodes", f"attempt {attempt.number} has {len(ids)} workers of a gang; expected {expected}"


def _of_the_deliveries(ledger: _Ledger, replay: _Replay) -> _Problems:
    attempts = {attempt.number: attempt for attempt in ledger.attempts}
    registered = {(checkpoint.attempt, checkpoint.step) for checkpoint in ledger.checkpoints}
    for number, step in sorted(registered ^ replay.saved):
        where = "events" if (number, step) in registered else "rows"
        yield "checkpoints", f"the checkpoint of attempt {number}, step {step} is not among the {where}"
    for number, _ in sorted(registered):
        if number not in attempts:
            yield "checkpoints", f"a checkpoint is of attempt {number}, which does not exist"
    for number, last in sorted(ledger.last_point.items()):
        if number not in attempts or last > attempts[number].delivered_seq:
            yield "points", f"a point is of record {last} of attempt {number}, which has delivered fewer"
    for number, last in sorted(ledger.last_log.items()):
        if number not in attempts or last > attempts[number].log_seq:
            yield "logs", f"line {last} is of attempt {number}, which has delivered fewer"
