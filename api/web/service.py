"""The pages about what the service has to work with: datasets and workers."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from api.http.auth import Admin, Reader
from api.http.dependencies import TheDatabase
from api.web import datasets as page_datasets
from api.web import workers as page_workers
from api.web.render import page
from jobs import workers as registry

router = APIRouter(include_in_schema=False)


@router.get("/datasets")
def datasets(request: Request, reader: Reader, database: TheDatabase) -> Response:
    """What jobs may train on."""
    with database.read() as session:
        found = page_datasets.dataset_list(session)
    return page(request, "datasets.html", list=found, now=found.now)


@router.get("/datasets/{name}")
def dataset(request: Request, name: str, reader: Reader, database: TheDatabase) -> Response:
    """One dataset: its classes, who has it, what was trained on it."""
    with database.read() as session:
        found = page_datasets.dataset_page(session, name)
    return page(request, "dataset.html", found=found, now=found.now)


@router.get("/workers")
def workers(request: Request, reader: Reader, database: TheDatabase) -> Response:
    """Who works, on what."""
    with database.read() as session:
        found = page_workers.worker_list(session)
    return page(request, "workers.html", list=found, now=found.now, may_drain="admin" in reader.scopes)


@router.post("/workers/{worker_id}/drain")
def drain(worker_id: str, admin: Admin, database: TheDatabase) -> Response:
    """Where no script runs: ask it to end; back to the workers."""
    database.write(lambda session: registry.drain(session, worker_id))
    return RedirectResponse(f"/workers#worker-{worker_id}", status_code=303)
