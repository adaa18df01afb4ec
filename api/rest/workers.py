"""Workers: list, drain, cordon."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from sqlalchemy.orm import Session

from api.http.auth import Reader, ServiceAdmin
from api.http.dependencies import TheDatabase
from api.rest.responses import Response, WorkerResponse
from jobs import devices, queries, workers
from jobs.models import Worker

router = APIRouter(prefix="/v1/workers")


class Workers(Response):
    """Running workers first, then newest first; those that ended a week ago are left out."""

    items: list[WorkerResponse]


@router.get("", tags=["catalog"])
def list_workers(principal: Reader, database: TheDatabase) -> Workers:
    """List the workers."""
    with database.read() as session:
        return Workers(items=_responses(session, queries.workers_and_jobs(session)))


@router.post("/{worker_id}/drain", tags=["operations"])
def drain(worker_id: str, principal: ServiceAdmin, database: TheDatabase) -> WorkerResponse:
    """Drain a worker: it saves its job, returns the job to the queue, takes no other job, and ends.

    The drain does not count as a failure of the job.  A second request changes nothing.
    """
    return database.write(lambda session: _response(session, workers.drain(session, worker_id)))


@router.post("/{worker_id}/cordon", tags=["operations"])
def cordon(worker_id: str, principal: ServiceAdmin, database: TheDatabase) -> WorkerResponse:
    """Cordon a worker: its jobs go on, and it takes no other one until it is uncordoned, also after a restart."""
    return database.write(lambda session: _response(session, workers.cordon(session, worker_id, True)))


@router.post("/{worker_id}/uncordon", tags=["operations"])
def uncordon(worker_id: str, principal: ServiceAdmin, database: TheDatabase) -> WorkerResponse:
    """Let a cordoned worker take jobs again.  A second request changes nothing."""
    return database.write(lambda session: _response(session, workers.cordon(session, worker_id, False)))


def _response(session: Session, worker: Worker) -> WorkerResponse:
    return _responses(session, [(worker, worker.job_id)])[0]


def _responses(session: Session, rows: Sequence[tuple[Worker, str | None]]) -> list[WorkerResponse]:
    """Return the responses about workers, each given with its job; None for one that the transaction does not see."""
    workers = [worker for worker, _ in rows]
    jobs, on_cpu = devices.users(session, workers), devices.cpu_users(session, workers)
    return [
        WorkerResponse.of(
            worker,
            job_id=job_id,
            devices=[each.as_json() | {"job_id": jobs.get(each.uuid)} for each in devices.of_worker(worker)],
            cpu_job_ids=on_cpu.get(worker.id, []),
        )
        for worker, job_id in rows
    ]
