"""Rows as clients see them (api.rest.responses): plain values, times in ISO 8601, never a path or a secret."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from api.rest.deviations import of_preset
from api.rest.responses import (
    ArtifactAnswer,
    AttemptAnswer,
    CheckpointAnswer,
    DatasetAnswer,
    EvaluationAnswer,
    EventAnswer,
    JobAnswer,
    JobSummary,
    Json,
    LogAnswer,
    SamplesAnswer,
    SeriesAnswer,
    WaitingAnswer,
    WorkerAnswer,
)
from jobs.curves import CurvePoint
from jobs.datasets import SheetLayout
from jobs.models import TRAINING, Artifact, Attempt, Checkpoint, Dataset, Evaluation, Event, Job, Log, Worker
from jobs.step_times import StepTime
from jobs.waiting import Waiting


def iso(milliseconds: int) -> str:
    """A time of the database, for example 2026-11-24T20:28:00.578Z."""
    text = datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def iso_or_none(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else iso(milliseconds)


def job_summary(job: Job, tags: Sequence[str]) -> JobSummary:
    here = f"/v1/jobs/{job.id}"
    parts = ("stream", "events", "attempts", "logs", "metrics", "checkpoints", "artifacts", "groups", "evaluations")
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
        "sweep_id": job.sweep_id,
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
        "damaged_at": iso_or_none(row.damaged_at),
        "links": {
            "self": here,
            "job": f"/v1/jobs/{row.job_id}",
            "native": f"{here}/download?kind=native",
            **backbone,
        },
    }


def artifact(row: Artifact) -> ArtifactAnswer:
    here = f"/v1/jobs/{row.job_id}"
    return {
        "name": row.name,
        "attempt": row.attempt,
        "media_type": row.media_type,
        "sha256": row.sha256,
        "size": row.size,
        "created_at": iso(row.created_at),
        "links": {"self": f"{here}/artifacts/{row.name}", "job": here},
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
    return {"name": name, "points": [point._asdict() for point in points]}


def step_time(sample: StepTime) -> Json:
    return {"step": sample.step, "at": iso(sample.at), "attempt": sample.attempt}


def dataset(row: Dataset, sheet: SheetLayout | None = None) -> DatasetAnswer:
    return {
        "name": row.name,
        "digest": row.digest,
        "kind": row.kind,
        "counts": row.counts,
        "classes": row.classes,
        "image_size": row.image_size,
        "class_counts": row.class_counts,
        "label_lists": row.label_lists or {},
        "samples": None if sheet is None else _samples(row.name, sheet),
        "updated_at": iso(row.updated_at),
    }


def _samples(name: str, sheet: SheetLayout) -> SamplesAnswer:
    address = f"/v1/datasets/{quote(name, safe='')}/samples.png"
    return {"png": address, "rows": sheet.rows, "columns": sheet.columns, "side": sheet.side}


def worker(row: Worker) -> WorkerAnswer:
    return {
        "id": row.id,
        "name": row.name,
        "pool": row.pool,
        "gpus": row.gpus,
        "state": row.state,
        "is_live": row.is_live,
        "job_id": row.job_id,
        "datasets": row.datasets,
        "spec_versions": row.spec_versions,
        "started_at": iso(row.started_at),
        "seen_at": iso(row.seen_at),
        "drain_requested_at": iso_or_none(row.drain_requested_at),
    }
