"""Workers: list, drain."""

from __future__ import annotations

from fastapi import APIRouter

from api.http.auth import Admin, Reader
from api.http.dependencies import TheDatabase
from api.rest.responses import Response, WorkerResponse
from jobs import queries, workers

router = APIRouter(prefix="/v1/workers")


class Workers(Response):
    """Running workers first, then newest first."""

    items: list[WorkerResponse]


@router.get("", tags=["catalog"])
def list_workers(principal: Reader, database: TheDatabase) -> Workers:
    """List the workers."""
    with database.read() as session:
        return Workers(items=[WorkerResponse.of(row) for row in queries.workers(session)])


@router.post("/{worker_id}/drain", tags=["operations"])
def drain(worker_id: str, principal: Admin, database: TheDatabase) -> WorkerResponse:
    """Drain a worker: it saves its job, returns the job to the queue, takes no other job, and ends.

    The drain does not count as a failure of the job.  A second request changes nothing.
    """
    return WorkerResponse.of(database.write(lambda session: workers.drain(session, worker_id)))
