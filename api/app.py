"""The application: routers, middleware, and the objects that they share (`app.state`)."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from api import rest, streams, web
from api.http.auth import Failures, KeyUses, Routes, classification, session_cookie
from api.http.dependencies import heavy_slots
from api.http.middleware import Middleware
from api.http.proxies import Proxies
from api.http.request_metrics import RequestMetrics
from api.http.uploads import upload_slots
from api.http.watch import StorageWatch, broker_watch
from api.streams.responses import Streams
from api.web.pages import NAVIGATION
from api.web.render import error_response
from jobs.database import Database
from jobs.errors import JobsError
from jobs.monitoring import FlawCounts
from jobs.settings import InvalidSettings, Settings
from jobs.storage import Storage, open_storage

_STATIC = Path(__file__).parent / "web" / "static"


def create_app(settings: Settings, database: Database, storage: Storage | None = None) -> FastAPI:
    """Return the web process's application; its storage is that of the settings by default.

    `app.state` holds `settings`, `database`, `storage`, `navigation` (of the pages), and `stopping`, an event that ends
    the open `streams`.

    Raises:
        RuntimeError: a route declares no scope.
        InvalidSettings: the root path begins as paths of the service do.
    """
    # `include_router` would build each route again for each application, which takes most of the time of this function.
    routes = [route for router in (*rest.ROUTERS, *streams.ROUTERS, *web.ROUTERS) for route in router.routes]
    app = FastAPI(title="WCL service", version="1", openapi_url=None, docs_url=None, redoc_url=None, routes=routes)
    app.state.settings = settings
    app.state.database = database
    app.state.storage = storage or open_storage(settings)
    app.state.storage_watch = StorageWatch(database, app.state.storage)
    app.state.broker_watch = broker_watch(settings)
    app.state.request_metrics = RequestMetrics()
    app.state.flaw_counts = FlawCounts()
    app.state.metric_faults = {}
    place = None
    with suppress(FileNotFoundError):  # before the first migration
        place = database.place()
    app.state.session_cookie = session_cookie(app.state.storage.id, place)
    app.state.heavy_slots = heavy_slots()
    app.state.upload_slots = upload_slots()
    app.state.failures = Failures()
    app.state.proxies = Proxies(settings)
    app.state.key_uses = KeyUses(database)
    app.state.navigation = NAVIGATION
    app.state.stopping = threading.Event()
    app.state.streams = Streams(database, app.state.stopping)
    app.mount("/static", StaticFiles(directory=_STATIC, check_dir=False), name="static")
    for kind in (JobsError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, error_response)
    app.add_middleware(Middleware, settings=settings, database=database, render_error=error_response)
    _refuse_unclassified(app)
    _refuse_own_root(app, settings.root_path)
    app.state.routes = Routes(app)
    return app


def _refuse_unclassified(app: FastAPI) -> None:
    forgotten = [route for route, scope in classification(app).items() if not scope]
    if forgotten:
        raise RuntimeError(f"routes without a scope (api.http.auth.Reader, Submitter, Admin): {', '.join(forgotten)}")


def _refuse_own_root(app: FastAPI, root_path: str) -> None:
    """Refuse a root path that the service could not tell from its own paths where a proxy has removed it."""
    first = root_path.split("/")[1:2]
    own = {getattr(route, "path", "").split("/")[1] for route in iter_route_contexts(app.routes)}
    if first and first[0] in own:
        raise InvalidSettings(f"WCL_ROOT_PATH: /{first[0]} is a path of the service; choose another one, such as /wcl")
