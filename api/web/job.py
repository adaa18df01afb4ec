"""The page of one job: progress, curves, checkpoints, evaluations, hardware, log, timeline and spec."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, get_args

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.rest.presets import PresetDeviation, preset_deviations
from api.web.embedding_maps import maps_of
from api.web.evaluations import Card, cards
from api.web.events import Entry, entries_before
from api.web.job_view import JobView
from api.web.picture import drawing
from api.web.render import page, picture
from jobs import changes, curves, queries, seed_groups, sweeps
from jobs.database import database_time
from jobs.keys import Principal
from jobs.models import Attempt, Checkpoint, Dependency, Job, Log
from jobs.seed_groups import Result
from jobs.sweeps import Place
from jobs.waiting import Waiting, explain
from wcl_core.config import Protocol
from wcl_core.protocol import GPU_PERCENT, HARDWARE_PREFIX, IMAGES_PER_SECOND, PROCESS_MEMORY_MIB

router = APIRouter(include_in_schema=False)

LOG_LINES = 400


@dataclass(frozen=True)
class Group:
    """The jobs that differ in their seed alone, and what was measured over the seeds."""

    id: str
    jobs: list[Job]
    results: list[Result]


@dataclass(frozen=True)
class Run:
    """Everything of one job but its curves."""

    view: JobView
    attempts: list[Attempt]
    events: list[Entry]
    checkpoints: list[Checkpoint]
    evaluations: list[Card]
    deviations: list[PresetDeviation] | None
    group: Group | None
    needs: list[tuple[str, str, str]]
    maps: dict[str, str]  # by checkpoint: the job that has made a map of it
    parent_name: str | None
    sweep: tuple[str, str, int] | None
    waiting: Waiting | None
    cursor: str
    now: int

    @property
    def job(self) -> Job:
        return self.view.job

    @property
    def map_job(self) -> str | None:
        """The job that has made a map: this one, or one that mapped the latest of its checkpoints that was."""
        if "map" in self.job.spec.get("protocols", ()):
            return self.job.id
        return next((self.maps[each.id] for each in self.checkpoints if each.id in self.maps), None)


def run(session: Session, job_id: str) -> Run:
    """One job.

    Raises:
        NotFound: there is none of this id.
    """
    job = queries.get_job(session, job_id)
    cursor = changes.now_cursor(session, job_id)  # read first: what comes later is streamed, at worst twice
    attempts = queries.attempts(session, job_id)
    checkpoints = queries.checkpoints(session, job_id)
    parent = session.get(Job, job.parent_id) if job.parent_id else None
    return Run(
        view=JobView(job, queries.tags(session, [job_id])[job_id]),
        attempts=attempts,
        events=entries_before(session, job_id, job.event_seq + 1),
        checkpoints=checkpoints,
        evaluations=cards(session, queries.evaluations(session, job_id)),
        deviations=preset_deviations(job.preset, job.spec),
        group=_group(session, job),
        needs=_needs(session, job_id),
        maps=maps_of(session, job_id, checkpoints),
        parent_name=parent.name if parent else None,
        sweep=_sweep(session, parent if job.kind == "evaluate" else job),
        waiting=explain(session, job),
        cursor=str(cursor),
        now=database_time(session),
    )


def sections(run: Run, address: str = "") -> list[tuple[str, str]]:
    """(address, name) of the parts of the job's page, which is here unless an address is given, and of the next one."""
    parts = [("evaluations", "Evaluations"), ("log", "Log"), ("timeline", "Timeline"), ("spec", "Spec")]
    if run.group:
        parts.insert(1, ("group", "Seeds"))
    if run.job.kind == "pretrain":
        parts = [("curves", "Curves"), ("checkpoints", "Checkpoints"), *parts]
        parts.insert(parts.index(("log", "Log")), ("hardware", "Hardware"))
    found = [(f"{address}#{anchor}", name) for anchor, name in parts]
    if run.job.kind == "pretrain":
        found.insert(1, (f"/jobs/{run.job.id}/weak-labels", "Weak labels"))
    if run.map_job:
        found.insert(len(found) - len(parts) + 1, (f"/jobs/{run.map_job}/map", "Map"))
    return found


def _group(session: Session, job: Job) -> Group | None:
    if job.group_id is None:
        return None
    jobs = seed_groups.members(session, job.group_id)
    return Group(job.group_id, jobs, seed_groups.results(session, jobs))


def _sweep(session: Session, job: Job | None) -> tuple[str, str, int] | None:
    """(id, name, trial) of the sweep that a training belongs to."""
    if job is None or job.sweep_id is None:
        return None
    found = sweeps.get_sweep(session, job.sweep_id)
    return found.id, found.name, Place.of(job.origin or "").trial


def _needs(session: Session, job_id: str) -> list[tuple[str, str, str]]:
    """(id, name, status) of the jobs that it waits for or waited for."""
    statement = (
        select(Job.id, Job.name, Job.status)
        .join(Dependency, Dependency.needs_job_id == Job.id)
        .where(Dependency.job_id == job_id)
        .order_by(Job.id)
    )
    return [(row.id, row.name, row.status) for row in session.execute(statement)]


# --- hardware --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hardware:
    """`names` are the metrics that were reported, `missing` sentences about those that were not."""

    names: list[str]
    missing: list[str]


def is_hardware(name: str) -> bool:
    """Return whether a metric is about the machine and not about the training."""
    return name == IMAGES_PER_SECOND or name.startswith(HARDWARE_PREFIX)


def hardware(run: Run) -> Hardware:
    """Return which hardware metrics a training job has reported, and why others are missing."""
    names = sorted(filter(is_hardware, run.view.metrics))
    if not any(name.startswith(HARDWARE_PREFIX) for name in names):
        waits = (
            "Metrics appear with the first report." if not run.view.is_over else "No hardware metrics were reported."
        )
        return Hardware(names, [waits])
    return Hardware(names, _missing(names, _device(run), run.job.spec.get("processes", 1)))


def _device(run: Run) -> str:
    """Return the device of the newest attempt that has started."""
    environments = [attempt.environment for attempt in run.attempts if attempt.environment]
    return str(environments[-1].get("device", "")) if environments else ""


def _missing(names: Collection[str], device: str, processes: int) -> list[str]:
    sentences = []
    if device.startswith("cpu"):
        sentences.append("This job trains on the CPU, so there are no GPU metrics.")
    elif GPU_PERCENT not in names:
        sentences.append("GPU utilisation is not available: install nvidia-ml-py on the worker.")
    if PROCESS_MEMORY_MIB not in names:
        sentences.append("Process memory is not available: it is read from /proc, which exists on Linux only.")
    if processes > 1:
        sentences.append(f"The metrics are of the first of {processes} processes.")
    return sentences


# --- routes ----------------------------------------------------------------------------------------------------------


@router.get("/jobs/{job_id}")
def job_page(request: Request, job_id: str, reader: Reader, database: TheDatabase) -> Response:
    """Return the page of a job."""
    with database.read() as session:
        view = run(session, job_id)
        lines: list[Log] = queries.logs(session, job_id, limit=LOG_LINES)
    context = _context(view, reader) | {
        "lines": lines,
        "sections": sections(view),
        "pictures": sorted(name for name in view.view.metrics if not is_hardware(name)),
    }
    return page(request, "job.html", **context)


@router.get("/jobs/{job_id}/live")
def job_live(request: Request, job_id: str, reader: Reader, database: TheDatabase) -> Response:
    """Return the parts of the page that change."""
    with database.read() as session:
        view = run(session, job_id)
    return page(request, "_job_live.html", **_context(view, reader))


def _context(view: Run, reader: Principal) -> dict[str, Any]:
    return {
        "run": view,
        "now": view.now,
        "may_submit": "submit" in reader.scopes,
        "protocols": get_args(Protocol),
        "hardware": hardware(view),
    }


@router.get("/jobs/{job_id}/curve.svg")
def curve_picture(job_id: str, name: str, reader: Reader, database: TheDatabase) -> Response:
    """Return one metric as a picture, for browsers without scripts."""
    with database.read() as session:
        points = curves.metrics(session, job_id, [name], max_points=300).get(name, [])
    return picture("curve.svg", **drawing(points, name))
