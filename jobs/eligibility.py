"""Which worker may run which job.  `transitions.claim` asks the same of the database, for one worker at a time."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_

from jobs.models import Job, Worker

LIVE = ("idle", "busy")


def takes_jobs() -> ColumnElement[bool]:
    """Of which workers a claim can come: they run, and nobody has asked them to drain."""
    return and_(Worker.state.in_(LIVE), Worker.drain_requested_at.is_(None))


def fits(worker: Worker, job: Job) -> bool:
    """Whether the worker has all that the job needs; who is busy, and whose turn it is, is another question."""
    return (
        worker.pool == job.pool
        and worker.gpus >= job.gpus
        and worker.datasets.get(job.dataset_name) == job.dataset_digest
        and str(job.spec_version) in worker.spec_versions
    )
