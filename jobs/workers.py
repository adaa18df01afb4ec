"""Workers and the datasets they announce: what runs where.

A worker's row decides nothing about the job it runs; only a drain, once asked for, keeps it from taking another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jobs import datasets as samples
from jobs.database import new_id, now_ms
from jobs.datasets import Sheet
from jobs.eligibility import WorkerFacts
from jobs.errors import Conflict, NotFound
from jobs.ingest import insert
from jobs.models import Dataset, Worker


@dataclass(frozen=True)
class DatasetFacts:
    """A dataset as a worker found it.

    Attributes:
        counts: images by split.
        class_counts: images of each class in label order, by split.
        label_lists: fixed lists of train images by name, each with its digest and how many they are.
        image_size: side of what is stored, where views cannot be larger; None where any size can be had.
        sheet: some images of each class as a picture.
    """

    name: str
    kind: str
    digest: str
    counts: dict[str, int]
    classes: list[str]
    class_counts: dict[str, list[int]] = field(default_factory=dict)
    label_lists: dict[str, dict[str, Any]] = field(default_factory=dict)
    image_size: int | None = None
    sheet: Sheet | None = None


def register(
    session: Session,
    worker: WorkerFacts,
    pid: int,
    datasets: Sequence[DatasetFacts],
    memory_bytes: int | None = None,
) -> None:
    """Add a worker's row, and its datasets: the newest announcement of a name is what new jobs get.

    Args:
        memory_bytes: what a training process can have at most: of its GPU, or of the machine; None where unknown.
    """
    session.add(
        Worker(
            id=worker.id,
            name=worker.name,
            pool=worker.pool,
            gpus=worker.gpus,
            memory_bytes=memory_bytes,
            pid=pid,
            datasets=dict(worker.datasets),
            spec_versions=[str(version) for version in worker.spec_versions],
            state="idle",
        )
    )
    for facts in sorted(datasets, key=lambda facts: facts.name):  # in one order, so that two workers never deadlock
        values = {name: value for name, value in vars(facts).items() if name not in ("name", "sheet")}
        statement = insert(session, Dataset).values(id=new_id(), name=facts.name, **values)
        session.execute(
            statement.on_conflict_do_update(index_elements=["name"], set_=values | {"updated_at": now_ms()})
        )
        samples.keep(session, facts.name, facts.sheet)


def beat(session: Session, worker_id: str, job_id: str | None) -> bool:
    """Say that the worker is there, busy with a job or idle; a worker taken for lost is back with it.

    Returns:
        Whether it was asked to drain.
    """
    state = "idle" if job_id is None else "busy"
    values = {"beats": Worker.beats + 1, "seen_at": now_ms(), "state": state, "job_id": job_id}
    session.execute(update(Worker).where(Worker.id == worker_id).values(values))
    asked = select(Worker.id).where(Worker.id == worker_id, Worker.drain_requested_at.is_not(None))
    return session.execute(asked).first() is not None


def drain(session: Session, worker_id: str) -> Worker:
    """Ask a worker to save its job, return it to the queue, and end; it claims nothing from this commit on.

    Asking twice changes nothing.

    Raises:
        NotFound, Conflict: no such worker; it has ended.
    """
    worker = session.get(Worker, worker_id, with_for_update=True)  # against a claim that is under way
    if worker is None:
        raise NotFound(f"there is no worker {worker_id}")
    if worker.state == "stopped":
        raise Conflict("the worker has ended already")
    if worker.drain_requested_at is None:
        session.execute(update(Worker).where(Worker.id == worker_id).values(drain_requested_at=now_ms()))
        session.refresh(worker)
    return worker


def stop(session: Session, worker_id: str) -> None:
    """The worker has ended in order."""
    session.execute(update(Worker).where(Worker.id == worker_id).values(state="stopped", job_id=None, seen_at=now_ms()))


def mark_lost(session: Session, worker_id: str, beats: int) -> None:
    """An observer saw no beat for a whole lease; a beat in between wins."""
    statement = update(Worker).where(Worker.id == worker_id, Worker.beats == beats, Worker.is_live)
    session.execute(statement.values(state="lost", job_id=None))
