"""Rows that several rules of one transaction need: each is read once in it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.database import within
from jobs.models import Dataset, Worker

T = TypeVar("T")
_READS = "shared reads"  # in `Session.info`


def live_workers(session: Session) -> list[Worker]:
    """Return the live workers of all pools, the one that started first at the front."""

    def read() -> list[Worker]:
        return list(session.execute(select(Worker).where(Worker.is_live).order_by(Worker.id)).scalars())

    return once(session, "workers", read)


def workers_of_pool(session: Session, pool: str) -> list[Worker]:
    """Return those of a pool."""
    return [worker for worker in live_workers(session) if worker.pool == pool]


def newest_worker(session: Session, pool: str) -> list[Worker]:
    """Return the worker of a pool that started last, whether it lives or not; nothing if the pool never had one."""

    def read() -> list[Worker]:
        of_pool = select(Worker).where(Worker.pool == pool)
        return list(session.execute(of_pool.order_by(Worker.id.desc()).limit(1)).scalars())

    return once(session, ("newest worker", pool), read)


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
