"""Devices of workers: GPUs, or stand-ins for them, and which of them no attempt uses.

A device belongs to at most one open attempt: `attempt_devices` holds a row for each use, and a unique index over the
rows that are not released.  The claim adds the rows, and the end of the attempt releases them (`jobs.transitions`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, literal, or_, select
from sqlalchemy.orm import Session

from jobs.database import within
from jobs.models import Attempt, AttemptDevice, AttemptNode, Worker
from jobs.shared_reads import WorkerRow, newest_worker, workers_of_pool

_MOST_NAMED = 100  # devices that a query names; of more it reads all that are in use


@dataclass(frozen=True)
class Device:
    """A device as its worker announces it.

    Attributes:
        uuid: names the device in the whole installation.
        index: place on its machine.
        name: the model, for people.
        memory_bytes: of the device; None where unknown.
        problem: why it takes no work, one sentence without a full stop; None if it works.
        load: share of the last second in which it computed, from 0 to 1; None where unknown.
        memory_used: bytes in use; None where unknown.
        temperature: in degrees Celsius; None where unknown.
    """

    uuid: str
    index: int
    name: str
    memory_bytes: int | None = None
    problem: str | None = None
    load: float | None = None
    memory_used: int | None = None
    temperature: int | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> Device:
        """Return the device of a row; a newer worker may announce further fields."""
        return cls(**{each.name: data[each.name] for each in fields(cls) if each.name in data})


FAULT_KINDS = ("xid", "ecc", "nvml", "taken", "other")
_PHRASES = {"Xid": "xid", "ECC": "ecc", "NVML": "nvml", "another worker": "taken"}


def fault_kind(problem: str) -> str:
    """Return the kind of a device's problem, for counts: one of `FAULT_KINDS`.

    The driver reports `xid` and `ecc`, its library `nvml`; `taken` is a GPU of another worker of the machine,
    and `other` for example one that a run could not use.
    """
    return next((kind for phrase, kind in _PHRASES.items() if phrase in problem), "other")


@dataclass(frozen=True)
class Free:
    """The part of a worker that no attempt uses.

    Attributes:
        devices: UUIDs, in the order in which they are given out.
        cpu_slots: number of attempts without devices that may start.
    """

    devices: tuple[str, ...]
    cpu_slots: int

    @property
    def most_gpus(self) -> int:
        """The most devices that one attempt can get now."""
        return most_gpus(self.devices)

    @property
    def is_empty(self) -> bool:
        return not self.devices and self.cpu_slots == 0

    def holds(self, gpus: int) -> bool:
        """Return whether an attempt that needs so many devices can start now."""
        return self.most_gpus >= gpus if gpus else self.cpu_slots > 0

    def take(self, gpus: int) -> tuple[str, ...]:
        """Return the devices of an attempt that needs so many: the first ones, of several whole GPUs only."""
        return (_whole(self.devices) if gpus > 1 else self.devices)[:gpus]

    def rest(self, gpus: int) -> Free:
        """Return the same without what an attempt that needs so many devices uses."""
        return Free(self.devices, self.cpu_slots - (gpus == 0)).without(self.take(gpus))

    def missing(self, gpus: int) -> int:
        """Return how many devices, or CPU slots, an attempt that needs so many devices lacks."""
        return max(0, gpus - self.most_gpus) if gpus else int(self.cpu_slots <= 0)

    def with_(self, other: Free | None) -> Free:
        """Return the same with another part of the worker."""
        return self if other is None else Free(self.devices + other.devices, self.cpu_slots + other.cpu_slots)

    def without(self, used: Collection[str]) -> Free:
        """Return the same without these devices."""
        return Free(tuple(uuid for uuid in self.devices if uuid not in used), self.cpu_slots)


def of_worker(worker: Worker | WorkerRow) -> tuple[Device, ...]:
    """Return the devices of a worker's row; those of a worker of an older version have no UUIDs of their own."""
    if worker.devices is None:
        return tuple(Device(f"{worker.id}/{index}", index, "GPU") for index in range(worker.gpus))
    return tuple(map(Device.of_json, worker.devices))


def process_memory(worker: Worker | WorkerRow, gpus: int, processes: int = 1) -> int | None:
    """Return the most bytes that a training process can have on a worker; None where unknown.

    A job with GPUs has the memory of a GPU for each process; all processes of a job without GPUs share the machine's.
    """
    if gpus == 0:
        return None if worker.memory_bytes is None else worker.memory_bytes // processes
    sizes = [size for each in worker.devices or () if (size := each.get("memory_bytes")) is not None]
    of_older_version = worker.memory_bytes if worker.devices is None else None
    return max(sizes, default=of_older_version)


def of_pool(session: Session, pool: str) -> list[Device]:
    """Return the devices of the running workers of a pool; if none runs, of the one that started last.

    They include broken devices: they show for which jobs the machines are meant.
    """
    return [device for worker in _workers_of_pool(session, pool) for device in of_worker(worker)]


def has_devices(session: Session, pool: str) -> bool:
    """Return whether a pool has any device, as `of_pool` reads them."""
    workers = _workers_of_pool(session, pool)
    return any(worker.gpus if worker.devices is None else worker.devices for worker in workers)


def _workers_of_pool(session: Session, pool: str) -> Sequence[WorkerRow]:
    return workers_of_pool(session, pool) or newest_worker(session, pool)


def is_part(uuid: str) -> bool:
    """Return whether a device is a MIG instance: CUDA lets a process see one of them, and no GPU beside it."""
    return uuid.startswith("MIG-")


def _whole(uuids: Iterable[str]) -> tuple[str, ...]:
    return tuple(uuid for uuid in uuids if not is_part(uuid))


def most_gpus(uuids: Collection[str]) -> int:
    """Return the most of these devices that one attempt can use: all whole GPUs, or one MIG instance."""
    return len(_whole(uuids)) or min(1, len(uuids))


def working(devices: Iterable[Device]) -> tuple[str, ...]:
    """Return the UUIDs of the devices without a problem."""
    return tuple(device.uuid for device in devices if device.problem is None)


def working_of(worker: Worker | WorkerRow) -> tuple[str, ...]:
    """Return the UUIDs of the devices of a worker's row that have no problem.

    It makes no `Device`, which took two fifths of a claim among 1,000 workers.
    """
    if worker.devices is None:
        return working(of_worker(worker))
    return tuple(device["uuid"] for device in worker.devices if device.get("problem") is None)


def in_use(session: Session, uuids: Collection[str]) -> set[str]:
    """Return those of the devices that an open attempt uses, of any worker."""
    if not uuids:
        return set()
    used = select(AttemptDevice.device).where(AttemptDevice.released_at.is_(None))
    if len(uuids) <= _MOST_NAMED:
        return set(session.execute(used.where(AttemptDevice.device.in_(uuids))).scalars())
    return set(session.execute(used).scalars()).intersection(uuids)


def free_of(session: Session, workers: Sequence[Worker | WorkerRow]) -> dict[str, Free]:
    """Return the free part of each worker by its id; a worker of an older version runs one attempt at a time."""
    devices = {worker.id: working_of(worker) for worker in workers}
    with within(session, None):  # a device is free if no project uses it
        used = in_use(session, [uuid for uuids in devices.values() for uuid in uuids])
        attempts, busy = _open_attempts(session)
    result = {}
    for worker in workers:
        if worker.cpu_slots is None:
            result[worker.id] = Free(devices[worker.id], 1) if worker.state == "idle" else Free((), 0)
        elif worker.takes_one and attempts[worker.id]:
            result[worker.id] = Free((), 0)
        else:
            result[worker.id] = Free(devices[worker.id], max(0, worker.cpu_slots - busy[worker.id])).without(used)
    return result


def _open_attempts(session: Session) -> tuple[Counter[str], Counter[str]]:
    """Return the number of open attempts by worker, and of those without devices; also as a further node of one."""
    has_devices = exists().where(AttemptDevice.job_id == Attempt.job_id, AttemptDevice.attempt == Attempt.number)
    is_open = Attempt.ended_at.is_(None)
    further = (
        select(AttemptNode.worker_id, has_devices).join(Attempt, is_node_of()).where(is_open, AttemptNode.node > 0)
    )
    rows = session.execute(select(Attempt.worker_id, has_devices).where(is_open).union_all(further)).all()
    return Counter(worker for worker, _ in rows), Counter(worker for worker, has_any in rows if not has_any)


def closest(gpus: int, nodes: int, free: Mapping[str, Free], later: Mapping[str, Free] | None = None) -> dict[str, int]:
    """Return the workers that keep their devices for a job that cannot start: as many as it has nodes.

    Args:
        gpus, nodes: of the job.
        free: the free part of each worker that fits the job, by id.
        later: the free parts that decide, if some running jobs give way to the job.

    Returns:
        The number of missing devices, or of CPU slots, of those that lack the fewest; empty if none is missing.
    """
    now = {each: part.missing(gpus) for each, part in free.items()}
    then = {each: part.missing(gpus) for each, part in (later or free).items()}
    chosen = sorted(now, key=lambda each: (then[each], now[each], each))[:nodes]
    return {each: now[each] for each in chosen} if any(now[each] for each in chosen) else {}


def used_by(session: Session, job_ids: Collection[str]) -> dict[str, Free]:
    """Return the part of each worker that the open attempts of these jobs use."""
    is_open = (Attempt.ended_at.is_(None), Attempt.job_id.in_(job_ids))
    first = select(Attempt.job_id, literal(0), Attempt.worker_id).where(*is_open)
    further = select(Attempt.job_id, AttemptNode.node, AttemptNode.worker_id).join(AttemptNode, is_node_of())
    held = select(AttemptDevice.job_id, AttemptDevice.node, AttemptDevice.device)
    held = held.where(AttemptDevice.job_id.in_(job_ids), AttemptDevice.released_at.is_(None))
    if not job_ids:
        return {}
    devices: dict[tuple[str, int], tuple[str, ...]] = defaultdict(tuple)
    for job_id, node, device in session.execute(held):
        devices[job_id, node] += (device,)
    result: dict[str, Free] = defaultdict(lambda: Free((), 0))
    nodes = session.execute(first.union_all(further.where(*is_open, AttemptNode.node > 0)))
    for job_id, node, worker_id in nodes:
        uuids = devices[job_id, node]
        result[worker_id] = result[worker_id].with_(Free(uuids, 0 if uuids else 1))
    return result


def is_node_of() -> ColumnElement[bool]:
    """Return the condition for the nodes of an attempt, in a query over both."""
    return and_(AttemptNode.job_id == Attempt.job_id, AttemptNode.attempt == Attempt.number)


def is_of_worker(worker_id: str) -> ColumnElement[bool]:
    """Return the condition for devices of a worker, in a query over attempts and their devices."""
    of_node = and_(
        AttemptNode.job_id == AttemptDevice.job_id,
        AttemptNode.attempt == AttemptDevice.attempt,
        AttemptNode.node == AttemptDevice.node,
        AttemptNode.worker_id == worker_id,
    )
    return or_(and_(Attempt.worker_id == worker_id, AttemptDevice.node == 0), exists().where(of_node))


def users(session: Session, workers: Sequence[Worker]) -> dict[str, str]:
    """Return the id of the job that uses each device of the workers now, by the device's UUID."""
    uuids = [device.uuid for worker in workers for device in of_worker(worker)]
    used = select(AttemptDevice.device, AttemptDevice.job_id).where(AttemptDevice.released_at.is_(None))
    return dict(session.execute(used.where(AttemptDevice.device.in_(uuids))).all()) if uuids else {}


def cpu_users(session: Session, workers: Sequence[Worker]) -> dict[str, list[str]]:
    """Return the ids of the jobs that run without devices now by their worker's id, the oldest first."""
    has_devices = exists().where(AttemptDevice.job_id == Attempt.job_id, AttemptDevice.attempt == Attempt.number)
    ids = [worker.id for worker in workers]
    is_running = (Attempt.ended_at.is_(None), ~has_devices)
    first = select(Attempt.worker_id, Attempt.job_id, Attempt.started_at).where(*is_running, Attempt.worker_id.in_(ids))
    further = select(AttemptNode.worker_id, Attempt.job_id, Attempt.started_at).join(Attempt, is_node_of())
    further = further.where(*is_running, AttemptNode.node > 0, AttemptNode.worker_id.in_(ids))
    here = first.union_all(further).order_by("started_at")
    result: dict[str, list[str]] = defaultdict(list)
    for worker_id, job_id, _ in session.execute(here) if workers else ():
        result[worker_id].append(job_id)
    return result


def by_attempt(session: Session, job_id: str) -> dict[int, list[str]]:
    """Return the devices of each attempt of a job by the attempt's number."""
    rows = select(AttemptDevice).where(AttemptDevice.job_id == job_id).order_by(AttemptDevice.node, AttemptDevice.place)
    result: dict[int, list[str]] = defaultdict(list)
    for row in session.execute(rows).scalars():
        result[row.attempt].append(row.device)
    return result


def by_node(session: Session, job_id: str, attempt: int) -> dict[int, list[str]]:
    """Return the devices of each node of an attempt by the node's number."""
    rows = select(AttemptDevice).where(AttemptDevice.job_id == job_id, AttemptDevice.attempt == attempt)
    result: dict[int, list[str]] = defaultdict(list)
    for row in session.execute(rows.order_by(AttemptDevice.node, AttemptDevice.place)).scalars():
        result[row.node].append(row.device)
    return result
