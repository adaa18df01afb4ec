"""Estimates of memory, time and disk of a training run, from the newest similar run that has succeeded."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.devices import process_memory
from jobs.models import Checkpoint, Job, Worker
from jobs.status import Status
from wcl_core.config import PretrainSpec, resolve_spec
from wcl_core.config.memory import SHARE, advice, largest_batch, process_bytes
from wcl_core.protocol import IMAGES_PER_SECOND

_MAX_RUNS = 200  # the search for a similar run reads so many of the newest succeeded runs
# The speed of a step and the size of a checkpoint depend on these fields; seed, loss and dataset may differ.
_ALIKE = (
    "method",
    "method_options",
    "backbone",
    "heads",
    "batch_size",
    "multi_crop",
    "queue_size",
    "momentum_decay",
    "micro_batch_size",
    "precision",
    "execution",
    "threads",
    "processes",
)


def steps_per_epoch(spec: PretrainSpec, images: int) -> int | None:
    """Return the steps of an epoch of so many images; None for a run that has yet to find its batch size."""
    return images // spec.batch_size if isinstance(spec.batch_size, int) else None


def estimate(session: Session, spec: PretrainSpec, pool: str, gpus: int, images: int) -> dict[str, Any]:
    """Estimate memory, time and disk of a run.

    Args:
        session: for reading.
        spec, pool, gpus: of the run.
        images: training images.

    Returns:
        `view_bytes`: the size of a step's views in each process, a lower bound of its memory.  `memory`: see `_memory`.
        `like`: None if no
        similar run has succeeded, else its `job` and `name`, its `images_per_second`, and the estimates that follow
        from it: `seconds` of training, and `disk_bytes` of the kept checkpoints; None where unknown.
    """
    similar = _newest_alike(session, spec, pool, gpus)
    steps = steps_per_epoch(spec, images)
    return {
        "view_bytes": spec.view_bytes,
        "memory": _memory(session, spec, pool, gpus, images),
        "like": similar and _estimates(session, similar, spec, None if steps is None else steps * spec.epochs),
    }


def _memory(session: Session, spec: PretrainSpec, pool: str, gpus: int, images: int) -> dict[str, Any] | None:
    """Return the memory that a training process needs, and that of the live worker with the most for each process.

    Returns:
        None if it is unknown, else `process_bytes`; `device_bytes`, of that worker's GPU or of its share of the
        machine; `on_gpu`; `largest_batch_size`, None if no batch fits; `warning`, None if the run fits.
    """
    fitting = (Worker.pool == pool, Worker.gpus >= gpus, Worker.is_live)
    workers = session.execute(select(Worker).where(*fitting)).scalars()
    available = max(filter(None, (process_memory(each, gpus, spec.processes) for each in workers)), default=None)
    if available is None:
        return None
    on_gpu = gpus > 0
    needed = process_bytes(spec, spec.images_per_step, is_gpu=on_gpu, images=images)
    if needed is None:
        return None
    planned = int(SHARE * available)
    return {
        "process_bytes": needed,
        "device_bytes": available,
        "on_gpu": on_gpu,
        "largest_batch_size": largest_batch(spec, planned, is_gpu=on_gpu, images=images) or None,
        "warning": advice(spec, available, is_gpu=on_gpu, images=images) if needed > available else None,
    }


def _newest_alike(session: Session, spec: PretrainSpec, pool: str, gpus: int) -> Job | None:
    expected = _alike(resolve_spec(spec))
    succeeded = select(Job).where(Job.status == Status.SUCCEEDED, Job.pool == pool, Job.kind == "pretrain")
    newest = session.execute(succeeded.order_by(Job.id.desc()).limit(_MAX_RUNS)).scalars()
    return next((job for job in newest if job.gpus == gpus and _alike(job.spec) == expected), None)


def _alike(spec: dict[str, Any]) -> list[Any]:
    return [
        spec["data"]["image_size"],
        spec["optimizer"]["name"],
        *(spec.get(name) for name in _ALIKE),
        spec.get("nodes", 1),
    ]


def _estimates(session: Session, run: Job, spec: PretrainSpec, total_steps: int | None) -> dict[str, Any]:
    speed = (run.latest_metrics or {}).get(IMAGES_PER_SECOND)
    sizes = select(Checkpoint.size).where(Checkpoint.job_id == run.id).order_by(Checkpoint.step.desc()).limit(1)
    size = session.execute(sizes).scalar_one_or_none()
    return {
        "job": run.id,
        "name": run.name,
        "images_per_second": speed,
        "seconds": total_steps * spec.images_per_step / speed if speed and total_steps is not None else None,
        "disk_bytes": None if size is None else size * _num_kept(spec),
    }


def _num_kept(spec: PretrainSpec) -> int:
    """Return the number of checkpoints that a run leaves behind."""
    every, saved = spec.checkpoints.every_epochs, -(-spec.epochs // spec.checkpoints.every_epochs)
    saved += spec.checkpoints.first_epoch and every > 1 and spec.epochs > 1
    if spec.checkpoints.keep_last is None:
        return saved
    return min(saved, spec.checkpoints.keep_last + spec.checkpoints.keep_best)
