"""Liveness, readiness, and gauges for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.http.problems import Unready
from api.rest.responses import Response
from jobs import queries, schema
from jobs.models import LIVE_STATES
from jobs.status import HELD
from jobs.version import VERSION
from jobs.webhooks import subscriptions

router = APIRouter(tags=["service"])


class Health(Response):
    """The server is healthy; `version` is the one of the service."""

    status: str
    version: str


class Readiness(Health):
    """The server is ready; `problems` are sentences on what it cannot do meanwhile, such as serving files."""

    problems: tuple[str, ...] = ()


@router.get("/healthz")
async def healthz() -> Health:
    """Return `ok` if the process runs."""
    return Health(status="ok", version=VERSION)


@router.get("/readyz", response_model_exclude_defaults=True)
def readyz(request: Request, database: TheDatabase) -> Readiness:
    """Return `ok` if the database is reachable and has this version's schema; a storage that is away is a problem."""
    if (problem := schema.problem(database)) is not None:
        raise Unready(problem)
    return Readiness(status="ok", version=VERSION, problems=tuple(_problems(request)))


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request, principal: Reader, database: TheDatabase) -> str:
    """Return gauges in the text format of Prometheus."""
    with database.read() as session:
        jobs = queries.counts_by_status(session)
        workers = queries.workers(session, alive_only=True)
        deliveries = subscriptions.counts_by_state(session)
    states = {state: sum(worker.state == state for worker in workers) for state in LIVE_STATES}
    unable = Counter({str(reason): 0 for reason in HELD})
    unable.update(worker.unable for worker in workers if worker.unable)
    is_available = not _problems(request)
    streams = request.app.state.streams.count
    return "".join(
        (
            _gauge("wcl_build_info", "1; the version of this server.", "version", {VERSION: 1}),
            _gauge("wcl_jobs", "Jobs that have not ended, by status.", "status", jobs),
            _gauge("wcl_workers", "Workers that run, by state.", "state", states),
            _gauge("wcl_workers_unable", "Workers that run and take no jobs, by reason.", "reason", unable),
            _gauge("wcl_storage_available", "1 if this process can reach the storage.", None, {"": int(is_available)}),
            _gauge("wcl_webhook_deliveries", "Messages of webhooks in the log, by state.", "state", deliveries),
            _gauge("wcl_streams", "Open event streams of this process.", None, {"": streams}),
        )
    )


def _problems(request: Request) -> list[str]:
    problem = request.app.state.storage_watch.problem
    return [] if problem is None else [problem]


def _gauge(name: str, meaning: str, label: str | None, values: Mapping[str, Any]) -> str:
    lines = [f"# HELP {name} {meaning}", f"# TYPE {name} gauge"]
    lines += [f'{name}{{{label}="{value}"}} {count}' if label else f"{name} {count}" for value, count in values.items()]
    return "\n".join(lines) + "\n"
