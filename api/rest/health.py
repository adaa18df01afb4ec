"""Liveness, readiness, and the metrics for Prometheus."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import GaugeMetricFamily
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.http.problems import Unready
from api.rest.responses import Response
from jobs import devices, monitoring, queries, schema, search
from jobs.database import Database
from jobs.fault_log import FaultLog
from jobs.models import LIVE_STATES
from jobs.status import HELD
from jobs.webhooks import subscriptions
from wcl_core.text import without_paths
from wcl_core.version import VERSION

log = logging.getLogger(__name__)
router = APIRouter(tags=["service"])


_Labels = TypeVar("_Labels", bound=tuple[str, ...])


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
    """Return `ok` if the database responds, has this version's schema and takes changes.

    A storage that is away or nearly full, a broker that does not respond and a search without an index are problems of
    a ready server.
    """
    if (problem := schema.problem(database) or schema.write_problem(database)) is not None:
        raise Unready(problem)
    return Readiness(status="ok", version=VERSION, problems=tuple(_problems(request, database)))


def _problems(request: Request, database: Database) -> Iterator[str]:
    storage, broker = request.app.state.storage_watch, request.app.state.broker_watch
    problem = storage.problem or storage.shortage
    yield from filter(None, (problem and without_paths(problem), broker.problem, search.problem(database)))


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request, principal: Reader, database: TheDatabase) -> PlainTextResponse:
    """Return the metrics of the service and of this process in the text format of Prometheus."""
    families, failed = list(_of_process(request)), {}
    for part, read in _PARTS.items():
        faults = request.app.state.metric_faults.setdefault(part, FaultLog(log, f"the reading of metrics of {part}"))
        try:
            with database.read() as session:
                families += read(session, request)
        except DBAPIError as error:  # of this part alone
            faults.failed(error)
        else:
            faults.succeeded()
        failed[part] = int(faults.is_failing)
    meaning = "1 if the database refuses what a part of these metrics reads; the part is then absent."
    families.append(_gauge("metrics_failed", meaning, _by(failed), ["part"]))
    text = generate_latest(_Families(families)) + generate_latest(request.app.state.request_metrics.registry)
    return PlainTextResponse(text, media_type=CONTENT_TYPE_LATEST)


class _Families:
    """Metrics of one moment, in the form that `generate_latest` takes."""

    def __init__(self, families: Sequence[GaugeMetricFamily]) -> None:
        self._families = families

    def collect(self) -> Sequence[GaugeMetricFamily]:
        return self._families


def _gauge(
    name: str, meaning: str, values: Mapping[_Labels, float | None], labels: Sequence[str] = ()
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"wcl_{name}", meaning, labels=labels)
    for of_labels, value in values.items():
        if value is not None:
            family.add_metric(of_labels, value)
    return family


def _of_process(request: Request) -> Iterator[GaugeMetricFamily]:
    state = request.app.state
    storage, broker = state.storage_watch, state.broker_watch
    yield _gauge("build_info", "1; the version of this server.", {(VERSION,): 1}, ["version"])
    yield _gauge("storage_available", "1 if this process can reach the storage.", {(): storage.problem is None})
    yield _gauge("storage_free_bytes", "Free bytes of the storage.", {(): storage.free_bytes})
    yield _gauge("broker_available", "1 if this process can reach the broker.", {(): broker.problem is None})
    yield _gauge("streams", "Open event streams of this process.", {(): state.streams.count})


def _of_queue(session: Session, _request: Request) -> Iterator[GaugeMetricFamily]:
    queue = monitoring.queue(session)
    yield _gauge("jobs", "Jobs that have not ended, by status.", _by(queue.jobs), ["status"])
    yield _gauge("jobs_paused", "Paused jobs, by reason.", _by(queue.paused), ["reason"])
    waiting = queue.oldest_due_seconds
    yield _gauge("oldest_due_seconds", "Waiting time of the oldest job that could start.", _by(waiting), ["pool"])
    meaning = "Jobs that ended in the last hour, by status and reason."
    yield _gauge("jobs_ended_last_hour", meaning, queue.ended, ["status", "reason"])


def _of_attempts(session: Session, _request: Request) -> Iterator[GaugeMetricFamily]:
    started, ended = monitoring.attempts_of_hour(session)
    yield _gauge("attempts_started_last_hour", "Attempts that began in the last hour.", {(): started})
    meaning = "Attempts that ended in the last hour, by reason."
    yield _gauge("attempts_ended_last_hour", meaning, _by(ended), ["reason"])


def _of_webhooks(session: Session, _request: Request) -> Iterator[GaugeMetricFamily]:
    deliveries = subscriptions.counts_by_state(session)
    yield _gauge("webhook_deliveries", "Messages of webhooks in the log, by state.", _by(deliveries), ["state"])


def _of_backups(session: Session, _request: Request) -> Iterator[GaugeMetricFamily]:
    meaning = "Age of the newest backup; +Inf without any."
    yield _gauge("backup_age_seconds", meaning, {(): monitoring.backup_age_seconds(session)})


def _of_keys(session: Session, _request: Request) -> Iterator[GaugeMetricFamily]:
    meaning = "Time until the last key with the scope admin expires; +Inf if one does not, 0 without any."
    yield _gauge("administrator_key_seconds_left", meaning, {(): monitoring.administrator_seconds(session)})


def _of_checkpoints(session: Session, request: Request) -> Iterator[GaugeMetricFamily]:
    meaning = "Checkpoints whose file is damaged or missing, as of the last minute."
    yield _gauge("checkpoints_flawed", meaning, _by(request.app.state.flaw_counts.read(session)), ["state"])


def _of_workers(session: Session, _request: Request) -> Iterator[GaugeMetricFamily]:
    workers = queries.workers(session, alive_only=True)
    yield _gauge("workers_lost_last_hour", "Workers lost in the last hour.", {(): monitoring.workers_lost(session)})
    states = {state: sum(worker.state == state for worker in workers) for state in LIVE_STATES}
    unable = Counter({str(reason): 0 for reason in HELD})
    unable.update(worker.unable for worker in workers if worker.unable)
    yield _gauge("workers", "Workers that run, by state.", _by(states), ["state"])
    yield _gauge("workers_unable", "Workers that run and take no jobs, by reason.", _by(unable), ["reason"])
    rooms = {(worker.name, worker.id): worker.disk_free_bytes for worker in workers}
    meaning = "Free bytes of the fuller of the disks that a worker's runs write to."
    yield _gauge("worker_disk_free_bytes", meaning, rooms, ["worker", "worker_id"])
    lags = {(worker.name, worker.id): (worker.lag_ms or 0) / 1000 for worker in workers}
    meaning = "Time for which the oldest report of a worker's runs has waited for its delivery."
    yield _gauge("ingest_lag_seconds", meaning, lags, ["worker", "worker_id"])
    labels = ["worker", "device", "uuid"]
    of_device = {
        (worker.name, str(each.index), each.uuid): each for worker in workers for each in devices.of_worker(worker)
    }
    for name, meaning, field in (
        ("device_load", "Share of the last second in which a device computed, from 0 to 1.", "load"),
        ("device_memory_bytes", "Memory of a device.", "memory_bytes"),
        ("device_memory_used_bytes", "Memory of a device that is in use.", "memory_used"),
        ("device_temperature_celsius", "Temperature of a device.", "temperature"),
    ):
        yield _gauge(name, meaning, {each: getattr(device, field) for each, device in of_device.items()}, labels)
    broken = {each: device.problem is not None for each, device in of_device.items()}
    yield _gauge("device_broken", "1 if a device takes no work.", broken, labels)
    faults = Counter(dict.fromkeys(devices.FAULT_KINDS, 0))
    faults.update(devices.fault_kind(each.problem) for each in of_device.values() if each.problem is not None)
    yield _gauge("devices_faulty", "Devices that take no work, by the kind of their fault.", _by(faults), ["kind"])


def _by(values: Mapping[str, float]) -> dict[tuple[str, ...], float | None]:
    return {(label,): value for label, value in values.items()}


_PARTS: Final[Mapping[str, Callable[[Session, Request], Iterator[GaugeMetricFamily]]]] = {
    "jobs": _of_queue,
    "attempts": _of_attempts,
    "webhooks": _of_webhooks,
    "backups": _of_backups,
    "keys": _of_keys,
    "checkpoints": _of_checkpoints,
    "workers": _of_workers,
}
