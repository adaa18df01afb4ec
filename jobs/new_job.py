"""The rows of a new job; `jobs.submission` and `jobs.checks` validate it first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from jobs import access, activity, logs
from jobs.database import Signal, new_id, signal
from jobs.datasets import pinned_digest
from jobs.models import CHECKPOINT, SUCCESS, Dataset, Dependency, Event, Job, Tag
from jobs.status import Status
from wcl_core.config import Kind, PretrainSpec, Spec, resolve_spec, version_of

# Columns of a job that a request may set beside the spec, and that a retry, a clone and a sweep's jobs keep.
OPTIONS = ("priority", "pool", "gpus", "preemptible", "max_seconds")
# Columns that are stored as `NewJob` has them.
_COPIED = (
    *("created_by", "kind", "spec_sent", "parent_id", "resume_checkpoint_id", "preset", "group_id", "origin"),
    *("sweep_id", *OPTIONS),
)


@dataclass(frozen=True)
class NewJob:
    """A job to be added.

    Attributes:
        spec_sent: the spec as the client sent it; `spec` is the same, validated.
        gpus: that each run needs; None: one where the pool has GPUs, else none.
        after: ids of jobs that have to succeed first.
        after_checkpoint: those of `after` of which a checkpoint is enough.
        preemptible: whether the job gives way to a job of higher priority.
        max_seconds: limit on the running time over all attempts.
        preset: name of the preset that the spec started from.
        group_id: the seed group, of jobs that differ in their seed only.
        origin: the entry of the parent's `evaluations`, or the place in a sweep, that the job belongs to.
    """

    kind: Kind
    spec_sent: dict[str, Any]
    spec: Spec
    name: str | None = None
    priority: int = 0
    pool: str = "default"
    gpus: int | None = None
    tags: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    after_checkpoint: frozenset[str] = frozenset()
    preemptible: bool = False
    max_seconds: int | None = None
    created_by: str | None = None
    parent_id: str | None = None
    resume_checkpoint_id: str | None = None
    preset: str | None = None
    group_id: str | None = None
    origin: str | None = None
    sweep_id: str | None = None


def kind_of(job: Job) -> Kind:
    return "pretrain" if job.kind == "pretrain" else "evaluate"


def options_of(source: Any) -> dict[str, Any]:
    """Return the `OPTIONS` of a job's row, or of a request's body, by name."""
    return {name: getattr(source, name) for name in OPTIONS}


def add(session: Session, new: NewJob, dataset: Dataset, *, waits: bool, digest: str | None = None) -> Job:
    """Add the job's row, tags, dependencies and first event; the job is blocked if it `waits`, else queued.

    Args:
        digest: the version of the dataset; None for the newest one.
    """
    assert new.gpus is not None, "the check has chosen it"
    status = (Status.BLOCKED if waits else Status.QUEUED).value
    spec = resolve_spec(new.spec)
    values = {name: getattr(new, name) for name in _COPIED} | {
        "id": new_id(),
        "name": new.name or default_name(new.spec),
        "status": status,
        "spec_version": version_of(spec),
        "nodes": nodes_of(new.spec),
        "spec": spec,
        "dataset_name": dataset.name,
        "dataset_digest": pinned_digest(session, dataset) if digest is None else digest,
        "event_seq": 1,
        "request_id": logs.request_id(),
    }
    job = session.execute(insert(Job).values(**values).returning(Job)).scalar_one()  # the row as it is stored
    session.add(Event(job_id=job.id, seq=job.event_seq, type="submitted", data={"status": status} | access.by(session)))
    session.add_all(Tag(job_id=job.id, tag=tag) for tag in dict.fromkeys(new.tags))
    session.add_all(
        Dependency(job_id=job.id, needs_job_id=other, until=CHECKPOINT if other in new.after_checkpoint else SUCCESS)
        for other in dict.fromkeys(new.after)
    )
    session.flush()
    if job.sweep_id is None:  # else the user has submitted the sweep
        activity.note(session, "job.submit", job.id, job.name, parent=job.parent_id)
    if not waits:
        signal(session, Signal.DUE)
    return job


def nodes_of(spec: Spec) -> int:
    """Return the number of workers that run a job together; an evaluation has one."""
    return spec.nodes if isinstance(spec, PretrainSpec) else 1


def default_name(spec: Spec) -> str:
    """Return a name that distinguishes the job in a list."""
    if isinstance(spec, PretrainSpec):
        return f"{spec.method} {spec.data.name} {spec.backbone.name}"
    return f"evaluate {spec.features.kind} on {spec.data.name}"
