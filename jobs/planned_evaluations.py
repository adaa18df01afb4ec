"""Planned evaluations of a training job: evaluation jobs that its checkpoints and its success create.

    a checkpoint is registered   when = every, when its epoch is one of them
    the job succeeds             when = final, the last checkpoint;  when = best, the one of the best eval/knn_top1

Both happen within the transaction of the checkpoint or of the success, behind the fence.  Each job has an `origin` that
is unique below its parent.  So a newer attempt that saves the same step again adds no second job.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import checkpoints
from jobs.events import record
from jobs.models import Checkpoint, Job, Tag
from jobs.new_job import NewJob, add, default_name
from jobs.shared_reads import dataset_named
from wcl_core.config import EvaluateSpec, EvaluationPlan, PretrainSpec, parse_spec, resolve_spec

BEST_ORIGIN = re.compile(r"evaluations/\d+/best")


def at_checkpoint(session: Session, job_id: str, checkpoint_id: str) -> None:
    """Submit the planned evaluations of a checkpoint that was just registered."""
    job = session.get_one(Job, job_id)
    for place, spec, plan in _plans(job):
        checkpoint = session.get_one(Checkpoint, checkpoint_id)
        if plan.every_epochs is not None and (
            checkpoint.epoch == spec.epochs or (checkpoint.epoch and checkpoint.epoch % plan.every_epochs == 0)
        ):
            _submit(session, job, spec, place, plan, checkpoint)


def at_success(session: Session, job_id: str) -> None:
    """Submit the planned evaluations of a job that has succeeded."""
    job = session.get_one(Job, job_id)
    for place, spec, plan in _plans(job):
        if plan.when == "every":
            continue
        newest_first = checkpoints.good(session, job_id)
        ranked = newest_first if plan.when == "final" else checkpoints.best_first(newest_first)
        if not ranked:
            message = f"evaluations/{place}: there is no checkpoint for when = {plan.when}"
            record(session, job_id, "warning", {"reason": "evaluation_not_submitted", "message": message})
        else:
            _submit(session, job, spec, place, plan, ranked[0])


def _plans(job: Job) -> Iterator[tuple[int, PretrainSpec, EvaluationPlan]]:
    if not job.spec.get("evaluations"):
        return
    spec = parse_spec("pretrain", job.spec)
    assert isinstance(spec, PretrainSpec)
    for place, plan in enumerate(spec.evaluations):
        yield place, spec, plan


def _submit(
    session: Session, job: Job, spec: PretrainSpec, place: int, plan: EvaluationPlan, checkpoint: Checkpoint
) -> None:
    origin = f"evaluations/{place}/{checkpoint.step if plan.when == 'every' else plan.when}"
    earlier = select(Job.id).where(Job.parent_id == job.id, Job.origin == origin)
    if session.execute(earlier).first() is not None:
        return
    evaluation = _evaluate_spec(spec, plan, checkpoint.id)
    dataset = dataset_named(session, evaluation.data.name)
    if dataset is None:
        message = f"evaluations/{place}: there is no dataset {evaluation.data.name!r} any more"
        record(session, job.id, "warning", {"reason": "evaluation_not_submitted", "message": message})
        return
    tags = session.execute(select(Tag.tag).where(Tag.job_id == job.id).order_by(Tag.tag)).scalars()
    new = NewJob(
        kind="evaluate",
        spec_sent=resolve_spec(evaluation),
        spec=evaluation,
        name=f"{default_name(evaluation)}, {plan.when} of {job.name}"[:200],
        priority=job.priority,
        pool=job.pool,
        gpus=min(1, job.gpus),  # an evaluation computes on one device
        tags=(*tags, f"evaluation:{plan.when}"),
        created_by=job.created_by,
        parent_id=job.id,
        origin=origin,
    )
    child = add(session, new, dataset, waits=False)
    record(session, job.id, "evaluation_submitted", {"job": child.id, "when": plan.when, "step": checkpoint.step})


def _evaluate_spec(spec: PretrainSpec, plan: EvaluationPlan, checkpoint_id: str) -> EvaluateSpec:
    settings = plan.model_dump(mode="json", exclude={"data", "when", "every_epochs"})
    data = (plan.data or spec.data).model_dump(mode="json")
    features = {"kind": "checkpoint", "checkpoint_id": checkpoint_id}
    result = parse_spec("evaluate", {**settings, "data": data, "features": features, "threads": spec.threads})
    assert isinstance(result, EvaluateSpec)
    return result
