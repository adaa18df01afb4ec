"""Rows and records for the tests of `jobs`: one dataset, workers that fit it, jobs on it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from threading import Barrier
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from jobs import point_blocks, submission, transitions
from jobs.attempts import AttemptRef
from jobs.database import Database, new_id
from jobs.devices import Device
from jobs.eligibility import WorkerFacts
from jobs.ingest import Delivered, StoredFile
from jobs.models import Attempt, Base, Checkpoint, Dataset, Event, Job, Point, Series
from jobs.status import Status
from jobs.submission import NewJob
from jobs.transitions import Claim, Requests
from wcl_core.config import SPEC_VERSIONS, Kind, parse_spec
from wcl_core.protocol import ArtifactRecord, CheckpointRecord, parse_record

DIGEST = "d" * 64
SHA = "a" * 64
T = TypeVar("T")


def add_dataset(database: Database, name: str = "digits", digest: str = DIGEST, train: int = 1000) -> None:
    def add(session: Any) -> None:
        counts = {"train": train, "test": 100}
        row = Dataset(id=new_id(), name=name, digest=digest, kind="builtin", counts=counts)
        row.classes = [str(number) for number in range(10)]
        session.add(row)

    database.write(add)


def new_job(kind: Kind = "pretrain", spec: dict[str, Any] | None = None, **fields: Any) -> NewJob:
    sent = {"data": {"name": "digits", "image_size": 8}} | (spec or {})
    if kind == "pretrain" and fields.get("gpus"):
        sent = {"batch_size": 240} | sent  # for any number of processes up to 6, and 8
    if kind == "evaluate":
        sent = {"features": {"kind": "pixels"}, "protocols": ["linear"]} | sent
    return NewJob(kind=kind, spec_sent=sent, spec=parse_spec(kind, sent), **fields)


def submit(database: Database, kind: Kind = "pretrain", spec: dict[str, Any] | None = None, **fields: Any) -> str:
    new = new_job(kind, spec, **fields)
    return database.write(lambda session: submission.submit(session, new).id)


WORKER = WorkerFacts(
    id="00000000-0000-7000-8000-0000000000aa",
    name="worker",
    pool="default",
    devices=(),
    datasets={"digits": DIGEST},
    spec_versions=SPEC_VERSIONS,
)


def worker(*, gpus: int | None = None, **changes: Any) -> WorkerFacts:
    """Return the properties of a worker, with so many devices of its own."""
    facts = replace(WORKER, **changes)
    return facts if gpus is None else replace(facts, devices=devices(gpus, facts.id))


def devices(count: int, owner: str = "gpu") -> tuple[Device, ...]:
    return tuple(Device(f"{owner}-{index}", index, "Stand-in") for index in range(count))


def claim(database: Database, facts: WorkerFacts = WORKER) -> Claim:
    result = try_claim(database, facts)
    assert result is not None
    return result


def try_claim(database: Database, facts: WorkerFacts = WORKER) -> Claim | None:
    return database.write(lambda session: transitions.claim(session, facts))


def make_due(database: Database) -> None:
    """End the backoff of every job."""
    database.write(lambda session: session.execute(update(Job).values(not_before=None)))


def running(database: Database, **fields: Any) -> Claim:
    """Submit a job and claim it."""
    submit(database, **fields)
    return claim(database)


def started(start_step: int = 0) -> dict[str, Any]:
    return {"type": "started", "start_step": start_step, "device": "cpu"}


def metrics(step: int, **values: float | None) -> dict[str, Any]:
    return {"type": "metrics", "step": step, "values": values}


class StoredPoint(NamedTuple):
    """A stored value of a metric, with the number of its record."""

    job_id: str
    attempt: int
    name: str
    step: int
    seq: int
    value: float | None


def stored_points(database: Database) -> list[StoredPoint]:
    """Return all stored values, of rows and of blocks, by attempt, metric, step and record."""
    row = select(Series.job_id, Point.attempt, Series.name, Point.step, Point.seq, Point.value)
    with database.read() as session:
        stored = [StoredPoint(*each) for each in session.execute(row.join(Series, Series.id == Point.series_id))]
        series = session.execute(select(Series)).scalars().all()
        names = {(each.job_id, each.number): each.name for each in series}
        for job_id in {each.job_id for each in series}:
            reported, _ = point_blocks.reported_after(session, job_id, (0, 0), (2**31 - 1, 0), 2**62)
            stored += [
                StoredPoint(job_id, each.attempt, names[job_id, each.series], each.step, each.seq, each.value)
                for each in reported
            ]
    return sorted(stored, key=lambda point: point[:5])


def points(database: Database) -> list[tuple[str, int, int, float | None]]:
    """Return (metric, step, number of the record, value) of all stored values, by metric and step."""
    return sorted((point[2:] for point in stored_points(database)), key=lambda point: point[:3])


def progress(step: int, **changes: Any) -> dict[str, Any]:
    facts = {"total_steps": 100, "epoch": 0.5, "total_epochs": 2, "images_per_second": None, "eta_seconds": None}
    return {"type": "progress", "step": step, **facts, "phase": "train", **changes}


def checkpoint(step: int, sha256: str = SHA) -> dict[str, Any]:
    facts = {
        "epoch": 1,
        "path": f"job/1/step-{step}.safetensors",
        "sha256": sha256,
        "size": 10,
        "metrics": {"loss": 1.5},
    }
    return {"type": "checkpoint", "step": step, **facts}


def artifact(name: str = "probe.png", sha256: str = SHA) -> dict[str, Any]:
    kinds = {"png": "image/png", "json": "application/json"}
    file = {"path": f"job/1/{sha256[:16]}-{name}", "sha256": sha256, "size": 10}
    return {"type": "artifact", "name": name, "media_type": kinds[name.rpartition(".")[2]], **file}


def groups(epoch: int, labels: Sequence[int], step: int | None = None) -> dict[str, Any]:
    """Return weak labels at an epoch's end; by default an epoch has ten steps."""
    return {"type": "groups", "epoch": epoch, "step": 10 * epoch if step is None else step, "labels": list(labels)}


def evaluation(value: float = 0.5, **changes: Any) -> dict[str, Any]:
    facts = {
        "protocol": "linear",
        "protocol_version": 1,
        "dataset_digest": DIGEST,
        "split_digest": "s" * 64,
        "params": {"C": 1.0},
        "seed": 0,
        "metric": "top1",
        "value": value,
        "stderr": None,
        "n": 100,
    }
    return {"type": "evaluation"} | facts | changes


def log(message: str) -> dict[str, Any]:
    return {"type": "log", "level": "info", "message": message}


def end(outcome: str, reason: str | None = None, message: str | None = None) -> dict[str, Any]:
    return {"type": "end", "outcome": outcome, "reason": reason, "message": message}


def numbered(records: Sequence[dict[str, Any]], first: int = 1) -> list[dict[str, Any]]:
    return [{"seq": first + place, **record} for place, record in enumerate(records)]


def delivered(lines: Sequence[dict[str, Any]]) -> list[Delivered]:
    """Numbered JSON lines as a worker delivers them; `path` of a file is its key in the storage."""
    records = [parse_record(json.dumps(line).encode()) for line in lines]
    return [StoredFile(r, r.file) if isinstance(r, CheckpointRecord | ArtifactRecord) else r for r in records]


class Run:
    """One attempt as its supervisor has it: numbers the records that it delivers."""

    def __init__(self, database: Database, claim: Claim) -> None:
        self.database, self.attempt = database, claim.attempt
        self.job_id, self.number = claim.job_id, claim.number
        self.seq = 0
        self.ran_ms = 0  # by the clock of its worker

    def deliver(
        self, *records: dict[str, Any], output: list[tuple[int, str]] | None = None, ran_ms: int | None = None
    ) -> Requests:
        self.ran_ms = self.ran_ms if ran_ms is None else ran_ms
        lines = numbered(records, self.seq + 1)
        answer = self.send(lines, output)
        self.seq += len(lines)
        return answer

    def send(self, lines: list[dict[str, Any]], output: list[tuple[int, str]] | None = None) -> Requests:
        return self.database.write(
            lambda session: transitions.deliver(
                session, self.attempt, delivered(lines), output or (), ran_ms=self.ran_ms
            )
        )

    def end(self, outcome: str, reason: str | None = None, message: str | None = None) -> None:
        self.database.write(
            lambda session: transitions.end_attempt(session, self.attempt, outcome, reason, message, ran_ms=self.ran_ms)
        )


def job(database: Database, job_id: str) -> Job:
    with database.read() as session:
        return session.get_one(Job, job_id)


def status(database: Database, job_id: str) -> str:
    return job(database, job_id).status


def open_attempt(database: Database, job_id: str) -> AttemptRef:
    """Return the attempt of a running job."""
    row = attempts(database, job_id)[-1]
    return AttemptRef(row.job_id, row.number, row.token)


def attempts(database: Database, job_id: str) -> list[Attempt]:
    with database.read() as session:
        where = select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)
        return list(session.execute(where).scalars())


def events(database: Database, job_id: str) -> list[Event]:
    with database.read() as session:
        return list(session.execute(select(Event).where(Event.job_id == job_id).order_by(Event.seq)).scalars())


def checkpoints(database: Database, job_id: str) -> list[Checkpoint]:
    with database.read() as session:
        where = select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step)
        return list(session.execute(where).scalars())


def rows_of(database: Database, table: type[Any]) -> list[tuple[Any, ...]]:
    """Return every row of a table, for a comparison."""
    with database.read() as session:
        return _rows_in(session, table)


def contents(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of the database by the names of the classes, read in one transaction."""
    with database.read() as session:
        return {each.class_.__name__: _rows_in(session, each.class_) for each in Base.registry.mappers}


def _rows_in(session: Session, table: type[Any]) -> list[tuple[Any, ...]]:
    return sorted(map(tuple, session.execute(select(*table.__table__.columns))), key=repr)


def job_in(database: Database, requested: Status) -> str:
    """Submit a job and bring it to a status by legal transitions."""
    if requested is Status.BLOCKED:
        return submit(database, after=(submit(database, pool="elsewhere"),))
    job_id = submit(database)
    if requested is Status.QUEUED:
        return job_id
    if requested in (Status.PAUSED, Status.CANCELLED):
        verb = transitions.pause if requested is Status.PAUSED else transitions.cancel
        database.write(lambda session: verb(session, job_id))
        return job_id
    run = Run(database, claim(database))
    assert run.job_id == job_id
    if requested is not Status.RUNNING:
        run.deliver(started(), end(str(requested), "bad_data" if requested is Status.FAILED else None))
    return job_id


def at_once(count: int, act: Callable[[int], T]) -> list[T]:
    """Run `act(0)`, `act(1)`, … on threads that start together; return their results."""
    barrier = Barrier(count)

    def start(number: int) -> T:
        barrier.wait()
        return act(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


@contextmanager
def in_background(act: Callable[[], T]) -> Iterator[Future[T]]:
    """Run `act` on another thread, which has ended at the end of the block."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(act)


def until_a_statement_waits_for_a_lock(database: Database, or_done: Future[Any] | None = None) -> None:
    """Wait until a statement in this PostgreSQL database waits for a lock, or `or_done` is done."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    deadline = time.monotonic() + 30
    while True:
        with database.read() as session:
            if session.execute(waiting).scalar_one() or (or_done and or_done.done()):
                return
        assert time.monotonic() < deadline, "no statement waits for a lock"
        time.sleep(0.01)


UNKNOWN_CLAIM = Claim(
    attempt=AttemptRef("00000000-0000-7000-8000-00000000dead", 1, "0" * 16),
    kind="pretrain",
    spec={},
    dataset_name="digits",
    dataset_digest=DIGEST,
    resume=None,
    evaluated=None,
)
