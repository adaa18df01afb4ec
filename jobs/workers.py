"""Workers: registration, heartbeats, drains, and the states stopped and lost.

No decision about a running job depends on its worker's row.  A requested drain prevents the claim of another job.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Update, bindparam, select, update
from sqlalchemy.orm import Session

from jobs import activity
from jobs.database import Signal, now_ms, signal
from jobs.datasets import DatasetFacts, announce
from jobs.devices import Device, working
from jobs.eligibility import WorkerFacts
from jobs.errors import Conflict, existing
from jobs.models import Worker
from jobs.webhooks import outbox
from wcl_core.text import without_paths
from wcl_core.version import VERSION


class Unable(NamedTuple):
    """Why a worker takes no jobs now: a reason for programs, and one sentence for people without a full stop."""

    reason: str
    message: str


def register(
    session: Session,
    worker: WorkerFacts,
    pid: int,
    datasets: Sequence[DatasetFacts],
    memory_bytes: int | None = None,
    unable: Unable | None = None,
    pending: Sequence[str] = (),
    has_compiler: bool | None = None,
) -> None:
    """Add a worker's row and announce its datasets.

    Args:
        session: a writing transaction.
        worker: its properties.
        pid: its process on its own machine.
        datasets: those that it has.
        memory_bytes: of the machine, as far as the worker may use it; None where unknown.
        unable: why it takes no jobs; None if it does.
        pending: names of the datasets that it still reads; `settle_dataset` follows for each.
        has_compiler: whether its machine has the compiler that compiled steps need; None where unknown.
    """
    session.add(
        Worker(
            id=worker.id,
            name=worker.name,
            pool=worker.pool,
            gpus=worker.gpus,
            devices=[device.as_json() for device in worker.devices],
            cpu_slots=worker.cpu_slots,
            memory_bytes=memory_bytes,
            has_compiler=has_compiler,
            pid=pid,
            version=VERSION,
            takes_one=worker.takes_one,
            datasets=dict(worker.datasets),
            pending_datasets=list(pending),
            refused_datasets={},
            own_datasets=list(worker.own_datasets),
            spec_versions=[str(version) for version in worker.spec_versions],
            state="idle",
            cordoned_at=_cordoned_at(session, worker.name),
            **_ability(unable),
        )
    )
    for facts in sorted(datasets, key=lambda facts: facts.name):  # in one order, so that two workers never deadlock
        announce(session, facts)


def namesakes(session: Session, worker: WorkerFacts) -> str | None:
    """Return a warning if another live worker has the name of a worker; None otherwise."""
    others = select(Worker.pid).where(Worker.name == worker.name, Worker.id != worker.id, Worker.is_live)
    pids = session.execute(others.order_by(Worker.id)).scalars().all()
    if not pids:
        return None
    return (
        f"another worker has the name {worker.name} (process {', '.join(map(str, pids))} of its machine); commands "
        "that name it need an id. Give one another name (WCL_WORKER_NAME), unless it has just ended"
    )


def _cordoned_at(session: Session, name: str) -> int | None:
    """Return since when the last worker of a name is cordoned; a restart of the worker does not change that."""
    last = (
        select(Worker.cordoned_at)
        .where(Worker.name == name)
        .order_by(Worker.started_at.desc(), Worker.id.desc())
        .limit(1)
    )
    return session.execute(last).scalar_one_or_none()


def begin_dataset(session: Session, worker_id: str, name: str) -> None:
    """Note that a worker reads a dataset again; until it has settled it, it has no version of it."""
    worker = session.get(Worker, worker_id, with_for_update=True)
    if worker is not None:
        worker.pending_datasets = [*(each for each in worker.pending_datasets or () if each != name), name]
        worker.datasets = {each: digest for each, digest in worker.datasets.items() if each != name}
        worker.refused_datasets = {each: why for each, why in (worker.refused_datasets or {}).items() if each != name}


def drop_dataset(session: Session, worker_id: str, name: str) -> None:
    """Note that a worker has nothing more to do with a dataset, since a user has removed or renamed it."""
    worker = session.get(Worker, worker_id, with_for_update=True)
    if worker is not None:
        worker.pending_datasets = [each for each in worker.pending_datasets or () if each != name]
        worker.datasets = {each: digest for each, digest in worker.datasets.items() if each != name}
        worker.refused_datasets = {each: why for each, why in (worker.refused_datasets or {}).items() if each != name}


def note_share(session: Session, worker_id: str, name: str, share: float) -> None:
    """Note the share of a pending dataset that a worker has read."""
    worker = session.get(Worker, worker_id, with_for_update=True)
    if worker is not None and name in (worker.pending_datasets or ()):
        worker.dataset_shares = {**(worker.dataset_shares or {}), name: share}


def note_cached_jobs(session: Session, worker_id: str, job_ids: Sequence[str]) -> None:
    """Note the jobs whose earlier version of a dataset is in the cache of a worker."""
    session.execute(update(Worker).where(Worker.id == worker_id).values(cached_jobs=list(job_ids)))
    signal(session, Signal.DUE)


def settle_dataset(session: Session, worker_id: str, name: str, result: DatasetFacts | str) -> None:
    """Announce a dataset that a worker has read, or store the reason why the worker refuses it."""
    worker = session.get(Worker, worker_id, with_for_update=True)
    if worker is None:
        return
    worker.pending_datasets = [each for each in worker.pending_datasets or () if each != name]
    worker.dataset_shares = {each: share for each, share in (worker.dataset_shares or {}).items() if each != name}
    if isinstance(result, str):
        worker.refused_datasets = {**(worker.refused_datasets or {}), name: result}
    else:
        worker.datasets = {**worker.datasets, name: result.digest}
        announce(session, result)
        signal(session, Signal.DUE)  # jobs that have waited for the dataset


def heartbeat(
    session: Session,
    worker_id: str,
    job_id: str | None,
    unable: Unable | None = None,
    devices: Sequence[Device] | None = None,
    address: str | None = None,
    disk_free_bytes: int | None = None,
    lag_ms: int | None = None,
) -> bool:
    """Record that the worker is alive, busy with a job or idle; a worker that was declared lost is live again.

    One that has stopped stays stopped.

    Args:
        session: a writing transaction.
        worker_id: the worker.
        job_id: the job that it runs; of several, the one that it has run for the longest time.
        unable: why it takes no further job; None if it does.
        devices: as they are now; None leaves those of the row.
        address: for jobs of several nodes; None while it takes none.
        disk_free_bytes: of the fuller of the disks that runs write to; None leaves the number of the row.
        lag_ms: for which the oldest report of its runs has waited for its delivery; None leaves the number of the row.

    Returns:
        Whether a user has requested that the worker drains.
    """
    values: dict[str, Any] = {"state": "idle" if job_id is None else "busy", "job_id": job_id, "address": address}
    values |= _ability(unable)
    if disk_free_bytes is not None:
        values |= {"disk_free_bytes": disk_free_bytes}
    if lag_ms is not None:
        values |= {"lag_ms": lag_ms}
    if devices is not None:
        values |= {"devices": [device.as_json() for device in devices], "gpus": len(working(devices))}
    parameters = {f"new_{name}": value for name, value in values.items()}
    requested_at = session.execute(_heartbeat(frozenset(values)), {"id_of_worker": worker_id, **parameters})
    return requested_at.scalar_one_or_none() is not None


@cache
def _heartbeat(names: frozenset[str]) -> Update:
    """Make the statement of each heartbeat once, since its making takes longer than its execution."""
    table: Any = Worker.__table__
    columns = Worker.__mapper__.columns
    values: dict[Any, Any] = {columns[name]: bindparam(f"new_{name}", type_=columns[name].type) for name in names}
    values |= {columns["heartbeats"]: columns["heartbeats"] + 1, columns["seen_at"]: now_ms()}
    # One that waited for the database while the worker stored its end comes too late.
    beats = update(table).where(columns["id"] == bindparam("id_of_worker"), columns["state"] != "stopped")
    return beats.values(values).returning(columns["drain_requested_at"])


def keep_for(session: Session, worker_id: str, job_id: str | None) -> None:
    """Announce the job that a worker keeps its free part for, so that no gang behind it takes that; None for none."""
    session.execute(update(Worker).where(Worker.id == worker_id).values(kept_for=job_id))
    signal(session, Signal.DUE)  # jobs that may start now


def _ability(unable: Unable | None) -> dict[str, str | None]:
    return {"unable": unable and unable.reason, "unable_message": unable and without_paths(unable.message)}


def drain(session: Session, worker_id: str) -> Worker:
    """Request that a worker saves its job, returns it to the queue and ends; after this commit it claims no job.

    A second request changes nothing.

    Raises:
        NotFound: there is no such worker.
        Conflict: it has stopped.
    """
    row = session.get(Worker, worker_id, with_for_update=True)  # against a claim that is under way
    worker = existing(row, "worker", worker_id)
    if worker.state == "stopped":
        raise Conflict("the worker has already stopped")
    if worker.drain_requested_at is None:
        session.execute(update(Worker).where(Worker.id == worker_id).values(drain_requested_at=now_ms()))
        session.refresh(worker)
        activity.note(session, "worker.drain", worker.id, worker.name)
    return worker


def cordon(session: Session, worker_id: str, is_cordoned: bool) -> Worker:
    """Let a worker take no further job, or allow it again; its jobs go on.

    A worker of the same name that starts later is cordoned as the last one, so one that has ended can be changed, too.

    Raises:
        NotFound: there is no such worker.
        Conflict: it has ended, and another one of its name has started since.
    """
    worker = existing(session.get(Worker, worker_id, with_for_update=True), "worker", worker_id)
    newest = select(Worker.id).where(Worker.name == worker.name).order_by(Worker.started_at.desc(), Worker.id.desc())
    if not worker.is_live and session.execute(newest.limit(1)).scalar_one() != worker_id:
        raise Conflict(f"this worker {worker.name} has ended, and another one of its name has started since")
    if (worker.cordoned_at is not None) != is_cordoned:
        values = {"cordoned_at": now_ms() if is_cordoned else None}
        session.execute(update(Worker).where(Worker.id == worker_id).values(values))
        session.refresh(worker)
        activity.note(session, f"worker.{'cordon' if is_cordoned else 'uncordon'}", worker.id, worker.name)
        signal(session, Signal.DUE)
    return worker


def stop(session: Session, worker_id: str) -> None:
    """Record that the worker ended in an orderly way."""
    session.execute(update(Worker).where(Worker.id == worker_id).values(state="stopped", job_id=None, seen_at=now_ms()))


def problem(session: Session, name: str) -> str | None:
    """Return why the worker of a name takes no jobs, a sentence without a full stop; None if it does."""
    newest = select(Worker).where(Worker.name == name).order_by(Worker.started_at.desc(), Worker.id.desc()).limit(1)
    worker = session.execute(newest).scalar_one_or_none()
    if worker is None:
        return f"no worker {name} has registered"
    if worker.drain_requested_at is not None:
        return f"worker {name} is drained; restart it, and it takes jobs again"
    if worker.cordoned_at is not None:
        return f"worker {name} is cordoned; `wcl worker uncordon` lets it take jobs again"
    if worker.is_live and worker.unable is None:
        return None
    return f"worker {name} takes no jobs: {worker.unable_message if worker.is_live else worker.state}"


def mark_lost(session: Session, worker_id: str, heartbeats: int) -> None:
    """Declare a live worker lost, unless it has sent a heartbeat since the reconciler counted them."""
    statement = update(Worker).where(Worker.id == worker_id, Worker.heartbeats == heartbeats, Worker.is_live)
    lost = session.execute(statement.values(state="lost", job_id=None).returning(Worker.id)).scalar_one_or_none()
    if lost is not None:
        outbox.on_worker_lost(session, worker_id, heartbeats)
