"""Rows as clients see them: plain values, times in ISO 8601, never a path or a secret.  `/v1` only grows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from typing_extensions import TypedDict

from api.deviations import Deviation, of_preset
from jobs.curves import CurvePoint
from jobs.models import TRAINING, Attempt, Checkpoint, Dataset, Evaluation, Event, Job, Log, Worker
from jobs.waiting import Waiting

Json = dict[str, Any]


class Named(TypedDict):
    """A dataset as a job is pinned to it."""

    name: str
    digest: str


class JobSummary(TypedDict):
    """A job in a list; `status`, `status_reason` and `kind` are open strings."""

    id: str
    kind: str
    name: str
    status: str
    status_reason: str | None
    status_message: str | None
    priority: int
    pool: str
    gpus: int
    preemptible: bool
    max_seconds: int | None
    tags: list[str]
    dataset: Named
    attempt: int
    failures: int
    parent_id: str | None
    group_id: str | None
    progress: Json | None
    latest_metrics: dict[str, float | None] | None
    cancel_requested_at: str | None
    pause_requested_at: str | None
    preempt_requested_at: str | None
    created_at: str
    updated_at: str
    started_at: str | None
    ended_at: str | None
    links: dict[str, str]


class WaitingAnswer(TypedDict):
    """Why a job waits; `cause` is an open string, `position` its place in the queue of its pool, from 1 on.

    `needs` are the jobs it waits for, `until` a time before which it is not tried again.
    """

    cause: str
    message: str
    position: int | None
    until: str | None
    needs: list[str]


class JobAnswer(JobSummary):
    """A job with its spec: as resolved, all defaults filled in, and as it was sent.

    `deviations` are the fields that differ from the preset it started from; null without one.  `waiting` is null once
    the job runs or has ended.
    """

    spec_version: int
    spec: Json
    spec_sent: Json
    preset: str | None
    deviations: list[Deviation] | None
    resume_checkpoint_id: str | None
    created_by: str | None
    waiting: WaitingAnswer | None


class AttemptAnswer(TypedDict):
    """One execution of a job."""

    number: int
    worker: str
    started_at: str
    ended_at: str | None
    end_reason: str | None
    start_step: int | None
    environment: Json | None


class EventAnswer(TypedDict):
    """Something that happened to a job; numbered without a gap."""

    seq: int
    type: str
    at: str
    data: Json


class LogAnswer(TypedDict):
    """One line that the training run wrote; `stream` is `run` or `output`."""

    attempt: int
    seq: int
    stream: str
    line: str
    at: str


class CheckpointAnswer(TypedDict):
    """A registered checkpoint; `sha256` and `size` are those of the native file.

    `kind` is `training`, or `embeddings`: features of a dataset, which an evaluation wrote.
    """

    id: str
    job_id: str
    attempt: int
    kind: str
    step: int
    epoch: int
    sha256: str
    size: int
    metrics: Json
    pinned: bool
    created_at: str
    links: dict[str, str]


class EvaluationAnswer(TypedDict):
    """One measured number; `details` holds what was found on the way."""

    id: str
    checkpoint_id: str | None
    protocol: str
    protocol_version: int
    metric: str
    value: float | None
    stderr: float | None
    n: int | None
    params: Json
    details: Json | None
    seed: int
    dataset_digest: str
    split_digest: str
    created_at: str


class SeriesAnswer(TypedDict):
    """One curve; a point that stands for several steps carries their last value and their extremes."""

    name: str
    points: list[Json]


class DatasetAnswer(TypedDict):
    """A dataset that a worker announced; `counts` are images by split, `class_counts` those of each class.

    `label_lists` are fixed lists of train images that `semi_supervised.lists` may name; `image_size` is the most
    that `data.image_size` can be, where there is a limit.
    """

    name: str
    digest: str
    kind: str
    counts: dict[str, int]
    classes: list[str]
    image_size: int | None
    class_counts: dict[str, list[int]] | None
    label_lists: dict[str, dict[str, Any]]
    updated_at: str


class WorkerAnswer(TypedDict):
    """A worker: idle, busy, stopped or lost."""

    id: str
    name: str
    pool: str
    gpus: int
    state: str
    job_id: str | None
    datasets: dict[str, str]
    spec_versions: list[str]
    started_at: str
    seen_at: str
    drain_requested_at: str | None


def iso(milliseconds: int) -> str:
    """A time of the database, for example 2026-11-24T20:28:00.578Z."""
    text = datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def iso_or_none(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else iso(milliseconds)


def job_summary(job: Job, tags: Sequence[str]) -> JobSummary:
    here = f"/v1/jobs/{job.id}"
    parts = ("stream", "events", "attempts", "logs", "metrics", "checkpoints", "evaluations")
    return {
        "id": job.id,
        "kind": job.kind,
        "name": job.name,
        "status": job.status,
        "status_reason": job.status_reason,
        "status_message": job.status_message,
        "priority": job.priority,
        "pool": job.pool,
        "gpus": job.gpus,
        "preemptible": job.preemptible,
        "max_seconds": job.max_seconds,
        "tags": list(tags),
        "dataset": {"name": job.dataset_name, "digest": job.dataset_digest},
        "attempt": job.attempt,
        "failures": job.failures,
        "parent_id": job.parent_id,
        "group_id": job.group_id,
        "progress": job.progress,
        "latest_metrics": job.latest_metrics,
        "cancel_requested_at": iso_or_none(job.cancel_requested_at),
        "pause_requested_at": iso_or_none(job.pause_requested_at),
        "preempt_requested_at": iso_or_none(job.preempt_requested_at),
        "created_at": iso(job.created_at),
        "updated_at": iso(job.updated_at),
        "started_at": iso_or_none(job.started_at),
        "ended_at": iso_or_none(job.ended_at),
        "links": {"self": here, "page": f"/jobs/{job.id}"} | {part: f"{here}/{part}" for part in parts},
    }


def job(row: Job, tags: Sequence[str], why: Waiting | None = None) -> JobAnswer:
    return {
        **job_summary(row, tags),
        "spec_version": row.spec_version,
        "spec": row.spec,
        "spec_sent": row.spec_sent,
        "preset": row.preset,
        "deviations": of_preset(row.preset, row.spec),
        "resume_checkpoint_id": row.resume_checkpoint_id,
        "created_by": row.created_by,
        "waiting": waiting(why) if why else None,
    }


def waiting(why: Waiting) -> WaitingAnswer:
    return {
        "cause": why.cause,
        "message": why.message,
        "position": why.position,
        "until": iso_or_none(why.until),
        "needs": list(why.needs),
    }


def attempt(row: Attempt) -> AttemptAnswer:
    return {
        "number": row.number,
        "worker": row.worker_name,
        "started_at": iso(row.started_at),
        "ended_at": iso_or_none(row.ended_at),
        "end_reason": row.end_reason,
        "start_step": row.start_step,
        "environment": row.environment,
    }


def event(row: Event) -> EventAnswer:
    data = {name: value for name, value in row.data.items() if name != "path"}  # where a file lies is our business
    return {"seq": row.seq, "type": row.type, "at": iso(row.at), "data": data}


def log_line(row: Log) -> LogAnswer:
    return {"attempt": row.attempt, "seq": row.seq, "stream": row.stream, "line": row.line, "at": iso(row.at)}


def checkpoint(row: Checkpoint) -> CheckpointAnswer:
    here = f"/v1/checkpoints/{row.id}"
    backbone = {"backbone": f"{here}/download?kind=backbone"} if row.kind == TRAINING else {}
    return {
        "id": row.id,
        "job_id": row.job_id,
        "attempt": row.attempt,
        "kind": row.kind,
        "step": row.step,
        "epoch": row.epoch,
        "sha256": row.sha256,
        "size": row.size,
        "metrics": row.metrics,
        "pinned": row.pinned,
        "created_at": iso(row.created_at),
        "links": {
            "self": here,
            "job": f"/v1/jobs/{row.job_id}",
            "native": f"{here}/download?kind=native",
            **backbone,
        },
    }


def evaluation(row: Evaluation) -> EvaluationAnswer:
    return {
        "id": row.id,
        "checkpoint_id": row.checkpoint_id,
        "protocol": row.protocol,
        "protocol_version": row.protocol_version,
        "metric": row.metric,
        "value": row.value,
        "stderr": row.stderr,
        "n": row.n,
        "params": row.params,
        "details": row.details,
        "seed": row.seed,
        "dataset_digest": row.dataset_digest,
        "split_digest": row.split_digest,
        "created_at": iso(row.created_at),
    }


def series(name: str, points: Sequence[CurvePoint]) -> SeriesAnswer:
    return {"name": name, "points": [vars(point) for point in points]}


def dataset(row: Dataset) -> DatasetAnswer:
    return {
        "name": row.name,
        "digest": row.digest,
        "kind": row.kind,
        "counts": row.counts,
        "classes": row.classes,
        "image_size": row.image_size,
        "class_counts": row.class_counts,
        "label_lists": row.label_lists or {},
        "updated_at": iso(row.updated_at),
    }


def worker(row: Worker) -> WorkerAnswer:
    return {
        "id": row.id,
        "name": row.name,
        "pool": row.pool,
        "gpus": row.gpus,
        "state": row.state,
        "job_id": row.job_id,
        "datasets": row.datasets,
        "spec_versions": row.spec_versions,
        "started_at": iso(row.started_at),
        "seen_at": iso(row.seen_at),
        "drain_requested_at": iso_or_none(row.drain_requested_at),
    }
