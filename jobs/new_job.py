"""The rows of a new job; `jobs.submission` and `jobs.checks` validate it first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import inspect, select
from sqlalchemy.orm import Session, make_transient_to_detached

from jobs import access, activity, logs
from jobs.database import DEFAULT_PROJECT, Signal, add_rows, new_id, project_of, queue_places, signal
from jobs.datasets import pinned_digest
from jobs.models import (
    CHECKPOINT,
    SEES_HIDDEN,
    SUCCESS,
    Activity,
    Checkpoint,
    Dataset,
    Dependency,
    Event,
    Job,
    Sweep,
    Tag,
)
from jobs.status import Status
from wcl_core.config import Kind, PretrainSpec, Spec, resolve_spec, version_of

# Columns of a job that a request may set beside the spec, and that a retry, a clone and a sweep's jobs keep.
OPTIONS = ("priority", "pool", "gpus", "preemptible", "max_seconds")
_RESULTS: Final = {"embed": "features", "map": "map"}  # of evaluations whose only protocol measures nothing
# Columns that are stored as `NewJob` has them.
_COPIED = (
    *("created_by", "kind", "spec_sent", "parent_id", "resume_checkpoint_id", "preset", "group_id", "origin"),
    *("sweep_id", *OPTIONS),
)
# The other columns of a new row, as the database stores them.
_DEFAULTS: Final = {each.key: None for each in inspect(Job).columns} | {
    "project_id": DEFAULT_PROJECT,
    "attempt": 0,
    "failures": 0,
}


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


class Checked(NamedTuple):
    """A job that may be added: validated, with its dataset.

    Attributes:
        waits: whether the job is blocked, and not queued.
        digest: the version of the dataset; None for the newest one.
    """

    new: NewJob
    dataset: Dataset
    waits: bool
    digest: str | None = None


def add(session: Session, new: NewJob, dataset: Dataset, *, waits: bool, digest: str | None = None) -> Job:
    """Add the row, the tags, the dependencies and the first event of a job, as `add_all`."""
    return add_all(session, [Checked(new, dataset, waits, digest)])[0]


def add_all(session: Session, checked: Sequence[Checked]) -> list[Job]:
    """Add the rows, the tags, the dependencies and the first events of jobs; the database sends none of them back."""
    values = [_values(session, each) for each in checked]
    if len(values) > 1:
        places, now = queue_places(session, len(values))
        for each, place in zip(values, places, strict=True):
            each |= {"queue_place": place, "created_at": now, "updated_at": now}
    by = access.by(session)
    tags: list[dict[str, Any]] = []
    needs: list[dict[str, Any]] = []
    for row, (new, *_) in zip(values, checked, strict=True):
        tags += [{"job_id": row["id"], "tag": tag} for tag in dict.fromkeys(new.tags)]
        for other in dict.fromkeys(new.after):
            until = CHECKPOINT if other in new.after_checkpoint else SUCCESS
            needs.append({"job_id": row["id"], "needs_job_id": other, "until": until})
    # A user who submits a sweep does not submit its jobs.
    own = [(row["id"], row["name"], {"parent": row["parent_id"]}) for row in values if row["sweep_id"] is None]
    tables: dict[type[Any], list[dict[str, Any]]] = {
        Job: values,
        Event: [
            {"job_id": row["id"], "seq": 1, "type": "submitted", "data": {"status": row["status"]} | by}
            for row in values
        ],
        Tag: tags,
        Dependency: needs,
        Activity: activity.rows_of(session, "job.submit", own),
    }
    if len(values) == 1:
        place, created, updated = add_rows(session, tables, Job.queue_place, Job.created_at, Job.updated_at).one()
        values[0] |= {"queue_place": place, "created_at": created, "updated_at": updated}
    else:
        add_rows(session, tables)
    if not all(each.waits for each in checked):
        signal(session, Signal.DUE)
    return [_row(session, each) for each in values]


def _row(session: Session, values: dict[str, Any]) -> Job:
    """Return a job that is stored with these values, as if it was read."""
    job: Job = inspect(Job).class_manager.new_instance()
    vars(job).update(_DEFAULTS | values)
    make_transient_to_detached(job)
    session.add(job)
    return job


def _values(session: Session, checked: Checked) -> dict[str, Any]:
    new, dataset, waits, digest = checked
    assert new.gpus is not None, "the check has chosen it"
    status = (Status.BLOCKED if waits else Status.QUEUED).value
    spec = resolve_spec(new.spec)
    return {name: getattr(new, name) for name in _COPIED} | {
        "id": new_id(),
        "project_id": _project(session, new),
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


def _project(session: Session, new: NewJob) -> str:
    """Return the project of a new job: that of the transaction, else that of the sweep, job or checkpoint behind it."""
    if (own := project_of(session)) is not None:
        return own
    if new.sweep_id is not None:
        origin = select(Sweep.project_id).where(Sweep.id == new.sweep_id)
    elif new.parent_id is not None:
        origin = select(Job.project_id).where(Job.id == new.parent_id)
    elif new.resume_checkpoint_id is not None:
        origin = select(Job.project_id).join(Checkpoint, Checkpoint.job_id == Job.id)
        origin = origin.where(Checkpoint.id == new.resume_checkpoint_id)
    else:
        return DEFAULT_PROJECT
    project_id: str | None = session.execute(origin, execution_options=SEES_HIDDEN).scalar_one_or_none()
    return project_id or DEFAULT_PROJECT


def nodes_of(spec: Spec) -> int:
    """Return the number of workers that run a job together; an evaluation has one."""
    return spec.nodes if isinstance(spec, PretrainSpec) else 1


def default_name(spec: Spec) -> str:
    """Return a name that distinguishes the job in a list."""
    if isinstance(spec, PretrainSpec):
        return f"{spec.method} {spec.data.name} {spec.backbone.name}"
    result = _RESULTS.get(spec.protocols[0]) if len(spec.protocols) == 1 else None
    return f"{result} of {spec.data.name}" if result else f"evaluate {spec.features.kind} on {spec.data.name}"
