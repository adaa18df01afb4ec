"""Eligibility: due jobs, workers that take jobs, the match of job and worker, and dependencies.

Each condition of a query is beside the function that decides the same for loaded rows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, exists, or_, true, tuple_
from sqlalchemy.orm import Session

from jobs.checkpoints import is_good
from jobs.database import now_ms
from jobs.devices import Device, Free, most_gpus, of_worker, working, working_of
from jobs.models import CHECKPOINT, LIVE_STATES, Checkpoint, Dependency, Job, Worker
from jobs.shared_reads import WorkerRow, worker_rows
from jobs.status import HELD, Status

# --- time ----------------------------------------------------------------------------------------------------------


def is_due() -> ColumnElement[bool]:
    """Return the condition for a job that a worker may claim now: queued, and its backoff is over."""
    return and_(Job.status == Status.QUEUED, _is_backoff_over())


def is_held() -> ColumnElement[bool]:
    """Return the condition for a job that waits for a worker's disk or storage, and may be tried again."""
    return and_(Job.status == Status.PAUSED, Job.status_reason.in_(HELD), _is_backoff_over())


def _is_backoff_over() -> ColumnElement[bool]:
    """Return the condition for a backoff that is over.

    It is also over when the database's clock has gone back to before the job's last change: SQLite's clock is that of
    the machine, and a wait must not last for as long as that clock was wrong.
    """
    has_gone_back = Job.updated_at > now_ms()
    return or_(Job.not_before.is_(None), Job.not_before <= now_ms(), has_gone_back)


# --- workers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerFacts:
    """The properties of a worker: pool, devices, datasets (name to digest) and the spec versions that it can run.

    Attributes:
        cpu_slots: number of attempts without devices that it runs at once.
        address: where runs of other workers reach its runs; None if it takes no job of several nodes.
        takes_one: whether it ends after one job.
        own_datasets: names of the datasets of its settings, which administrators do not change.
        cached_jobs: ids of the jobs whose earlier version of a dataset it has in its cache.
    """

    id: str
    name: str
    pool: str
    devices: tuple[Device, ...]
    datasets: dict[str, str]
    spec_versions: tuple[int, ...]
    cpu_slots: int = 1
    address: str | None = None
    takes_one: bool = False
    own_datasets: tuple[str, ...] = ()
    cached_jobs: set[str] = field(default_factory=set)

    @property
    def gpus(self) -> int:
        """The number of its working devices."""
        return len(working(self.devices))

    @property
    def all_free(self) -> Free:
        """All that it offers, as if it ran no attempt."""
        return Free(working(self.devices), self.cpu_slots)

    @classmethod
    def of(cls, worker: Worker) -> WorkerFacts:
        """Return the properties in a worker's row."""
        versions = tuple(int(version) for version in worker.spec_versions)
        devices = of_worker(worker)
        return cls(
            worker.id,
            worker.name,
            worker.pool,
            devices,
            worker.datasets,
            versions,
            worker.cpu_slots or 0,
            worker.address,
            worker.takes_one,
            cached_jobs=set(worker.cached_jobs or ()),
        )


class Needs(NamedTuple):
    """The columns of a job that decide which workers can run it; jobs with equal ones fit the same workers."""

    pool: str
    gpus: int
    nodes: int
    dataset_name: str
    dataset_digest: str
    spec_version: int

    @classmethod
    def of(cls, job: Job) -> Needs:
        return cls(*(getattr(job, name) for name in cls._fields))


NEEDS = tuple(getattr(Job, name) for name in Needs._fields)


def has_needs(needs: Collection[Needs]) -> ColumnElement[bool]:
    """Return the condition for a job with some of these needs."""
    return tuple_(*NEEDS).in_(list(needs))


def takes_jobs() -> ColumnElement[bool]:
    """Return the condition for a worker that claims jobs: it is live, does not drain, and is not unable."""
    is_free_to = (Worker.drain_requested_at.is_(None), Worker.cordoned_at.is_(None), Worker.unable.is_(None))
    return and_(Worker.is_live, *is_free_to)


def takers(session: Session, *conditions: ColumnElement[bool]) -> list[WorkerRow]:
    """Return the workers that claim jobs and meet the conditions, the one that started first at the front."""
    return worker_rows(session, takes_jobs(), *conditions)


def may_take_jobs(worker: Worker | WorkerRow) -> bool:
    """Return whether a worker claims jobs; `takes_jobs` decides the same in a query."""
    is_held = worker.drain_requested_at is not None or worker.cordoned_at is not None
    return worker.state in LIVE_STATES and not is_held and worker.unable is None


def fits_worker(worker: WorkerFacts) -> ColumnElement[bool]:
    """Return the condition for a job that the worker can run; `fits` decides the same about two rows."""
    return and_(
        Job.pool == worker.pool,
        true() if worker.address is not None else Job.nodes == 1,
        Job.gpus <= worker.all_free.most_gpus,
        or_(
            tuple_(Job.dataset_name, Job.dataset_digest).in_(list(worker.datasets.items())),
            Job.id.in_(list(worker.cached_jobs)),
        ),
        Job.spec_version.in_(worker.spec_versions),
    )


def fits_free(free: Free) -> ColumnElement[bool]:
    """Return the condition for a job that the free part of a worker holds; `Free.holds` decides the same."""
    on_devices = and_(Job.gpus > 0, Job.gpus <= free.most_gpus)
    return or_(on_devices, Job.gpus == 0) if free.cpu_slots > 0 else on_devices


def fits(worker: Worker | WorkerRow, job: Job | Needs) -> bool:
    """Return whether the worker can run the job, regardless of whether it is busy."""
    return (
        worker.pool == job.pool
        and has_address(worker, job)
        and has_gpus(worker, job)
        and has_dataset(worker, job)
        and supports_spec_version(worker, job)
    )


def has_address(worker: Worker | WorkerRow, job: Job | Needs) -> bool:
    """Return whether the worker can be one of the job's nodes."""
    return (job.nodes or 1) == 1 or worker.address is not None


def has_gpus(worker: Worker | WorkerRow, job: Job | Needs) -> bool:
    """Return whether the worker has as many GPUs as the job needs on each node."""
    return job.gpus <= most_gpus(working_of(worker))


def has_dataset(worker: Worker | WorkerRow, job: Job | Needs) -> bool:
    """Return whether the worker has the version of the dataset that the job pins, in its folder or in its cache."""
    is_cached = isinstance(job, Job) and job.id in (worker.cached_jobs or ())
    return is_cached or bool(worker.datasets.get(job.dataset_name) == job.dataset_digest)


def supports_spec_version(worker: Worker | WorkerRow, job: Job | Needs) -> bool:
    """Return whether the worker can run specs of the job's version."""
    return str(job.spec_version) in worker.spec_versions


# --- dependencies --------------------------------------------------------------------------------------------------


def is_met(needed: type[Job]) -> ColumnElement[bool]:
    """Return the condition for a met dependency, in a query over `Dependency` and the needed job.

    The needed job has succeeded, or it has a good checkpoint if only that is required.
    """
    saved = exists().where(Checkpoint.job_id == needed.id, is_good())
    return or_(needed.status == Status.SUCCEEDED, and_(Dependency.until == CHECKPOINT, saved))


def is_lost(needed: type[Job]) -> ColumnElement[bool]:
    """Return the condition for a dependency that can no longer be met."""
    return and_(needed.status.in_((Status.FAILED, Status.CANCELLED)), ~is_met(needed))
