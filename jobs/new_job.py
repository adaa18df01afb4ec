"""A new job into its rows; what may be asked for was checked before (`service`, `checks`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from jobs.database import new_id
from jobs.events import record
from jobs.models import CHECKPOINT, SUCCESS, Dataset, Dependency, Job, Tag
from jobs.status import Status
from wcl_core.config import Kind, PretrainSpec, Spec, resolve_spec


@dataclass(frozen=True)
class NewJob:
    """A job as a client wants it: `spec_sent` as it came, `spec` validated.

    `after` are jobs that have to succeed first; of those also in `after_checkpoint` a checkpoint is enough.
    `max_seconds` are of running time; a `preemptible` job gives way to one of higher priority.  `preset` is the name of
    the preset it started from; `group_id` joins jobs that differ in their seed alone; `origin` says which entry of the
    parent's `evaluations`, or which place of a sweep, asked for it.
    """

    kind: Kind
    spec_sent: dict[str, Any]
    spec: Spec
    name: str | None = None
    priority: int = 0
    pool: str = "default"
    gpus: int = 0
    tags: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    after_checkpoint: frozenset[str] = frozenset()
    preemptible: bool = False
    max_seconds: int | None = None
    created_by: str | None = None
    parent_id: str | None = None
    resume_checkpoint_id: str | None = field(default=None)
    preset: str | None = None
    group_id: str | None = None
    origin: str | None = None
    sweep_id: str | None = None


def add(session: Session, new: NewJob, dataset: Dataset, *, waits: bool) -> Job:
    """The job's row, tags, dependencies and first event: blocked when it `waits` for others, else queued."""
    job = Job(
        id=new_id(),
        created_by=new.created_by,
        kind=new.kind,
        name=new.name or default_name(new.spec),
        status=Status.BLOCKED if waits else Status.QUEUED,
        spec_version=new.spec.spec_version,
        spec_sent=new.spec_sent,
        spec=resolve_spec(new.spec),
        priority=new.priority,
        pool=new.pool,
        gpus=new.gpus,
        preemptible=new.preemptible,
        max_seconds=new.max_seconds,
        dataset_name=dataset.name,
        dataset_digest=dataset.digest,
        parent_id=new.parent_id,
        resume_checkpoint_id=new.resume_checkpoint_id,
        preset=new.preset,
        group_id=new.group_id,
        origin=new.origin,
        sweep_id=new.sweep_id,
    )
    session.add(job)
    session.flush()
    session.add_all(Tag(job_id=job.id, tag=tag) for tag in dict.fromkeys(new.tags))
    session.add_all(
        Dependency(job_id=job.id, needs_job_id=other, until=CHECKPOINT if other in new.after_checkpoint else SUCCESS)
        for other in dict.fromkeys(new.after)
    )
    record(session, job.id, "submitted", {"status": job.status})
    session.refresh(job)
    return job


def default_name(spec: Spec) -> str:
    """A name that tells jobs apart in a list."""
    if isinstance(spec, PretrainSpec):
        return f"{spec.method} {spec.data.name} {spec.backbone.name}"
    return f"evaluate {spec.features.kind} on {spec.data.name}"
