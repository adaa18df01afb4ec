"""The application: routers, the gate in front of them, and what they share (`app.state`)."""

from __future__ import annotations

import threading
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from api.http import auth
from api.http.failures import Failures
from api.http.key_uses import KeyUses
from api.http.middleware import Gate
from api.rest import (
    artifacts,
    checkpoints,
    datasets,
    health,
    job_parts,
    jobs,
    keys,
    openapi,
    seed_groups,
    sweeps,
    weak_labels,
    workers,
)
from api.streams import routes
from api.streams.responses import Streams
from api.web import actions, render
from api.web.pages import NAVIGATION, PAGES
from jobs.database import Database
from jobs.errors import JobsError
from jobs.settings import Settings
from jobs.storage import LocalStorage

_STATIC = Path(__file__).parent / "web" / "static"
_ROUTERS = (
    *(
        module.router
        for module in (
            jobs,
            job_parts,
            artifacts,
            weak_labels,
            seed_groups,
            sweeps,
            routes,
            checkpoints,
            datasets,
            keys,
            workers,
            health,
            openapi,
            actions,
        )
    ),
    *(page.router for page in PAGES),
)


def create_app(settings: Settings, database: Database) -> FastAPI:
    """The web process's application.

    `app.state` holds `settings`, `database`, `storage`, `navigation` (of the pages), and `stopping`, an event that ends
    the open `streams`.

    Raises:
        RuntimeError: a route does not say who may use it.
    """
    app = FastAPI(title="WCL service", version="1", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.settings = settings
    app.state.database = database
    app.state.storage = LocalStorage(settings.checkpoints_dir)
    app.state.failures = Failures()
    app.state.key_uses = KeyUses(database)
    app.state.navigation = NAVIGATION
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
        raise RuntimeError(f"routes without a scope (api.http.auth.Reader, Submitter, Admin): {', '.join(forgotten)}")


def _answer(request: Request, error: Exception) -> Response:
    return render.answer(request, error)
