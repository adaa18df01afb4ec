"""The list of workers: the jobs they run, how busy each pool is, and the workers that have ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.http.auth import Reader, ServiceAdmin
from api.http.dependencies import TheDatabase
from api.web.job_view import JobView
from api.web.render import page
from jobs import devices, queries
from jobs import workers as job_workers
from jobs.database import database_time
from jobs.devices import Device
from jobs.models import Job, Worker
from jobs.status import Status

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class DeviceView:
    """A device of a worker, and the job that uses it."""

    device: Device
    job: Job | None

    @property
    def state(self) -> str:
        """The state: broken, busy or free."""
        return "broken" if self.device.problem else "busy" if self.job else "free"

    @property
    def memory_share(self) -> float | None:
        used, total = self.device.memory_used, self.device.memory_bytes
        return None if used is None or not total else used / total


@dataclass(frozen=True)
class WorkerView:
    """A running worker with its current job.

    Attributes:
        devices: its devices, in the order of their numbers.
        on_cpu: its jobs without devices.
        older: names of its datasets of which another version is registered; it cannot run new jobs on them.
    """

    worker: Worker
    view: JobView | None
    older: frozenset[str]
    devices: Sequence[DeviceView] = ()
    on_cpu: Sequence[Job] = ()

    @property
    def gpu_memory(self) -> int | None:
        return devices.process_memory(self.worker, gpus=1)

    @property
    def state(self) -> str:
        """The state: idle, busy, draining, cordoned, or unable for an idle worker that takes no jobs."""
        if self.worker.drain_requested_at is not None:
            return "draining"
        if self.worker.cordoned_at is not None:
            return "cordoned"
        return "unable" if self.worker.state == "idle" and self.worker.unable else self.worker.state


@dataclass(frozen=True)
class Pool:
    """The slots of a pool and the number of its queued jobs."""

    name: str
    busy: int
    free: int
    draining: int
    unable: int
    gpus: int
    queued: int

    @property
    def slots(self) -> list[str]:
        return ["busy"] * self.busy + ["idle"] * self.free + ["draining"] * (self.draining + self.unable)


@dataclass(frozen=True)
class WorkerList:
    """The workers of the page.

    Attributes:
        newest: ids of the workers that no other one of their name has followed; a cordon of theirs holds for the next.
    """

    running: list[WorkerView]
    gone: list[Worker]
    newest: frozenset[str]
    pools: list[Pool]
    now: int


def worker_list(session: Session) -> WorkerList:
    """Return the running workers, busy ones first, and the stopped ones, newest first."""
    workers = queries.workers(session)
    running = [worker for worker in workers if worker.is_live]
    views = _views(session, running)
    return WorkerList(
        running=sorted(views, key=lambda view: (view.worker.pool, view.view is None, view.worker.name)),
        gone=[worker for worker in workers if not worker.is_live],
        newest=frozenset({worker.name: worker.id for worker in sorted(workers, key=_age)}.values()),
        pools=_pools(session, views),
        now=database_time(session),
    )


def _age(worker: Worker) -> tuple[int, str]:
    return worker.started_at, worker.id


def _views(session: Session, workers: Sequence[Worker]) -> list[WorkerView]:
    users = devices.users(session, workers)
    on_cpu = devices.cpu_users(session, workers)
    ids = {worker.job_id for worker in workers if worker.job_id} | set(users.values()) | set(chain(*on_cpu.values()))
    jobs = {job.id: job for job in session.execute(select(Job).where(Job.id.in_(ids))).scalars()} if ids else {}
    current = {entry.name: entry.digest for entry in queries.datasets(session)}
    return [
        WorkerView(
            worker,
            JobView(jobs[worker.job_id], []) if worker.job_id in jobs else None,
            frozenset(name for name, digest in worker.datasets.items() if current.get(name) != digest),
            [DeviceView(each, jobs.get(users.get(each.uuid, ""))) for each in devices.of_worker(worker)],
            [jobs[job_id] for job_id in on_cpu.get(worker.id, ())],
        )
        for worker in workers
    ]


def _pools(session: Session, views: Sequence[WorkerView]) -> list[Pool]:
    """Return the pools by name, including those that have queued jobs but no worker."""
    statement = select(Job.pool, func.count()).where(Job.status == Status.QUEUED).group_by(Job.pool)
    queued = {row[0]: row[1] for row in session.execute(statement)}
    names = sorted({view.worker.pool for view in views} | set(queued))
    return [_pool(name, [view for view in views if view.worker.pool == name], queued.get(name, 0)) for name in names]


def _pool(name: str, views: Sequence[WorkerView], queued: int) -> Pool:
    states = Counter(view.state for view in views)
    gpus = sum(view.worker.gpus for view in views)
    return Pool(
        name, states["busy"], states["idle"], states["draining"] + states["cordoned"], states["unable"], gpus, queued
    )


@router.get("/workers")
def workers_page(request: Request, reader: Reader, database: TheDatabase) -> Response:
    """Return the page of all workers."""
    with database.read() as session:
        view = worker_list(session)
    return page(request, "workers.html", list=view, now=view.now, may_drain=reader.manages_service())


@router.post("/workers/{worker_id}/drain")
def drain(worker_id: str, admin: ServiceAdmin, database: TheDatabase) -> Response:
    """Drain a worker, from a browser without scripts; redirect to the workers."""
    database.write(lambda session: job_workers.drain(session, worker_id))
    return RedirectResponse(f"/workers#worker-{worker_id}", status_code=303)


@router.post("/workers/{worker_id}/cordon")
def cordon(worker_id: str, admin: ServiceAdmin, database: TheDatabase) -> Response:
    """Cordon a worker; redirect to the workers."""
    database.write(lambda session: job_workers.cordon(session, worker_id, True))
    return RedirectResponse(f"/workers#worker-{worker_id}", status_code=303)


@router.post("/workers/{worker_id}/uncordon")
def uncordon(worker_id: str, admin: ServiceAdmin, database: TheDatabase) -> Response:
    """Let a cordoned worker take jobs again; redirect to the workers."""
    database.write(lambda session: job_workers.cordon(session, worker_id, False))
    return RedirectResponse(f"/workers#worker-{worker_id}", status_code=303)
