"""Rows that several rules of one transaction need: each is read once in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import JSON, ColumnElement, Text, cast, func, select
from sqlalchemy.orm import Session

from jobs.database import within
from jobs.models import LIVE_STATES, Dataset, Worker

T = TypeVar("T")
_READS = "shared reads"  # in `Session.info`


class WorkerRow(NamedTuple):
    """The columns of a worker's row that a rule over all workers needs.

    Among 1,000 workers with eight devices each, objects of whole rows take three to five times as long.  The values of
    JSON columns are shared between rows: for reading only.
    """

    id: str
    name: str
    pool: str
    gpus: int
    devices: list[dict[str, Any]] | None
    cpu_slots: int | None
    memory_bytes: int | None
    has_compiler: bool | None
    takes_one: bool
    address: str | None
    datasets: dict[str, Any]
    pending_datasets: list[str] | None
    dataset_shares: dict[str, Any] | None
    refused_datasets: dict[str, Any] | None
    cached_jobs: list[str] | None
    spec_versions: list[str]
    state: str
    kept_for: str | None
    drain_requested_at: int | None
    cordoned_at: int | None
    unable: str | None
    unable_message: str | None


_IS_JSON = [isinstance(getattr(Worker, name).type, JSON) for name in WorkerRow._fields]


def worker_rows(session: Session, *conditions: ColumnElement[bool]) -> list[WorkerRow]:
    """Return the workers that meet the conditions, the one that started first at the front."""
    columns: list[Any] = [getattr(Worker, name) for name in WorkerRow._fields]
    columns = [cast(column, Text) if is_json else column for column, is_json in zip(columns, _IS_JSON, strict=True)]
    rows = session.execute(select(*columns).where(*conditions).order_by(Worker.id))
    return [
        WorkerRow(*(_value(each) if is_json else each for each, is_json in zip(row, _IS_JSON, strict=True)))
        for row in rows
    ]


@lru_cache(maxsize=4_096)
def _value(text: str | None) -> Any:
    """Return the value of a JSON text; most are the same in other rows and in the next transaction."""
    return None if text is None else json.loads(text)


def live_workers(session: Session) -> list[WorkerRow]:
    """Return the live workers of all pools, the one that started first at the front."""
    return once(session, "workers", lambda: worker_rows(session, Worker.state.in_(LIVE_STATES)))


def workers_of_pool(session: Session, pool: str) -> list[WorkerRow]:
    """Return those of a pool."""
    return [worker for worker in live_workers(session) if worker.pool == pool]


def newest_worker(session: Session, pool: str) -> list[WorkerRow]:
    """Return the worker of a pool that started last, whether it lives or not; nothing if the pool never had one."""
    newest = select(func.max(Worker.id)).where(Worker.pool == pool).scalar_subquery()
    return once(session, ("newest worker", pool), lambda: worker_rows(session, Worker.id == newest))


def dataset_named(session: Session, name: str) -> Dataset | None:
    """Return the dataset of a name; None without one."""

    def read() -> Dataset | None:
        return session.execute(select(Dataset).where(Dataset.name == name)).scalar_one_or_none()

    return once(session, ("dataset", name), read)


def hold_datasets(session: Session, names: Collection[str]) -> None:
    """Lock the datasets of these names: until the transaction ends, none is removed or renamed."""
    reads = _of(session)
    if needed := [name for name in sorted(names) if ("held", name) not in reads]:
        locked = select(Dataset).where(Dataset.name.in_(needed)).order_by(Dataset.name).with_for_update(read=True)
        rows = session.execute(locked, execution_options={"populate_existing": True}).scalars()
        by_name = {row.name: row for row in rows}
        reads |= {("dataset", name): by_name.get(name) for name in needed} | {("held", name): True for name in needed}


def _of(session: Session) -> dict[Any, Any]:
    reads: dict[Any, Any] = session.info.setdefault(_READS, {})
    return reads


def once(session: Session, key: Any, read: Callable[[], T], *, is_fresh: bool = False) -> T:
    """Return the result of a read of all projects; the first call of a transaction with this key reads.

    A later call with `is_fresh` reads again.
    """
    reads = _of(session)
    if is_fresh or key not in reads:
        with within(session, None):
            reads[key] = read()
    result: T = reads[key]
    return result
