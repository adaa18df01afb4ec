"""The application: routers, the gate in front of them, and what they share (`app.state`)."""

from __future__ import annotations

import threading
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from api import (
    access,
    artifacts,
    auth,
    catalog,
    checkpoints,
    document,
    groups,
    health,
    job_parts,
    job_routes,
    operations,
    page_actions,
    page_analysis,
    page_map,
    page_render,
    page_service,
    page_submit,
    page_sweep_form,
    page_sweeps,
    page_weak_labels,
    pages,
    sign_in,
    stream_routes,
    sweep_routes,
    weak_groups,
)
from api.failures import Failures
from api.gate import Gate
from api.key_uses import KeyUses
from api.streams import Streams
from jobs.database import Database
from jobs.errors import JobsError
from jobs.settings import Settings
from jobs.storage import LocalStorage

_STATIC = Path(__file__).parent / "static"
_ROUTERS = tuple(
    module.router
    for module in (
        job_routes,
        job_parts,
        artifacts,
        weak_groups,
        groups,
        sweep_routes,
        stream_routes,
        checkpoints,
        catalog,
        access,
        sign_in,
        operations,
        health,
        document,
        pages,
        page_actions,
        page_analysis,
        page_service,
        page_map,
        page_submit,
        page_sweep_form,  # before the sweeps, of which `new` is none
        page_sweeps,
        page_weak_labels,
    )
)


def create_app(settings: Settings, database: Database) -> FastAPI:
    """The web process's application.

    `app.state` holds `settings`, `database`, `storage`, and `stopping`, an event that ends the open `streams`.

    Raises:
        RuntimeError: a route does not say who may use it.
    """
    app = FastAPI(title="WCL service", version="1", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.settings = settings
    app.state.database = database
    app.state.storage = LocalStorage(settings.checkpoints_dir)
    app.state.failures = Failures()
    app.state.key_uses = KeyUses(database)
    app.state.stopping = threading.Event()
    app.state.streams = Streams(database, app.state.stopping)
    for router in _ROUTERS:
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=_STATIC, check_dir=False), name="static")
    for kind in (JobsError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer)
    app.add_middleware(Gate, settings=settings, database=database)
    _refuse_unclassified(app)
    return app


def _refuse_unclassified(app: FastAPI) -> None:
    forgotten = [route for route, scope in auth.classification(app).items() if not scope]
    if forgotten:
        raise RuntimeError(f"routes without a scope (api.auth.Reader, Submitter, Admin): {', '.join(forgotten)}")


def _answer(request: Request, error: Exception) -> Response:
    return page_render.answer(request, error)
