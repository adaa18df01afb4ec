"""What the page of one job shows, read in one short session and detached from it before a template sees it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.rest.deviations import Deviation, of_preset
from api.web.embedding_maps import maps_of
from api.web.evaluations import Card, cards
from api.web.jobs import JobView, database_time
from api.web.timeline import Entry, entries_before
from jobs import changes, queries, seed_groups, sweeps
from jobs.models import Attempt, Checkpoint, Dependency, Job, Log
from jobs.seed_groups import Result
from jobs.sweeps import Place
from jobs.waiting import Waiting, explain

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
    deviations: list[Deviation] | None
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
        deviations=of_preset(job.preset, job.spec),
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


def logs(session: Session, job_id: str) -> list[Log]:
    """The last lines."""
    return queries.logs(session, job_id, limit=LOG_LINES)


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
