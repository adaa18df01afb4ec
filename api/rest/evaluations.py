"""Evaluations of checkpoints, and their baselines: bodies and new jobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.http.idempotency import Submission
from api.rest.job_bodies import checked_spec
from jobs import access, queries
from jobs import submission as service
from jobs.datasets import pinned_digest
from jobs.errors import Conflict, FieldError, Invalid
from jobs.models import EMBEDDINGS, TRAINING, Checkpoint, Job
from jobs.new_job import NewJob, default_name
from jobs.shared_reads import dataset_named
from jobs.status import TERMINAL, Status
from wcl_core.config import DataConfig, ProtocolSettings, parse_spec, protocol_facts, resolve_spec
from wcl_core.protocol import EMBEDDINGS_FILE

_MAX_NAME = 200
_BASELINE = "baseline/"  # the origin of a baseline, below the evaluation that it repeats


class EvaluateBody(ProtocolSettings):
    """The evaluation of a checkpoint: an EvaluateSpec without `features`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"protocols": ["knn", "linear"]}]})

    data: DataConfig | None = Field(
        default=None, description="The data to evaluate on; by default the checkpoint's training data."
    )
    threads: int | None = Field(default=None, ge=1, le=512)


def create_evaluation(submission: Submission, checkpoint_id: str, body: EvaluateBody) -> Job:
    """Create a job that evaluates a checkpoint, once for each idempotency key.

    Features alone (`embed`) are computed once: a job that has them, or that is to compute them, is returned.

    Raises:
        Invalid: with pointers into the body, which is the spec itself.
        NotFound, Conflict: as `new_evaluation`.
    """

    def create(session: Session) -> Job:
        new = new_evaluation(session, checkpoint_id, body, submission.owner)
        return _job_of_features(session, new) or service.submit(session, new)

    request = ("evaluate", checkpoint_id, body.model_dump(mode="json", exclude_unset=True))
    try:
        return submission.create(request, Job, create)
    except Invalid as error:
        raise Invalid([FieldError(e.pointer.removeprefix("/spec"), e.detail) for e in error.errors]) from error


def new_evaluation(session: Session, checkpoint_id: str, body: EvaluateBody, created_by: str) -> NewJob:
    """Return the evaluation as a job, with the pool, GPUs, priority and tags of the job that trained the checkpoint.

    Raises:
        NotFound: there is no such checkpoint.
        Conflict: the checkpoint holds no network.
        Invalid: the body does not fit the data that the checkpoint was trained on.
    """
    checkpoint = queries.get_checkpoint(session, checkpoint_id)
    if checkpoint.kind != TRAINING:
        raise Conflict(f"checkpoint {checkpoint.id} holds {checkpoint.kind}, not a network that could be measured")
    trained = queries.get_job(session, checkpoint.job_id)
    sent = _sent(body, checkpoint.id, trained)
    with checked_spec("evaluate"):
        spec = parse_spec("evaluate", sent)
    return NewJob(
        kind="evaluate",
        spec_sent=sent,
        spec=spec,
        name=f"{default_name(spec)}, step {checkpoint.step} of {trained.name}"[:_MAX_NAME],
        priority=access.copied_priority(session, trained.priority),
        pool=trained.pool,
        gpus=min(1, trained.gpus),  # an evaluation computes on one device
        tags=tuple(queries.tags(session, [trained.id])[trained.id]),
        created_by=created_by,
        parent_id=trained.id,
    )


def _job_of_features(session: Session, new: NewJob) -> Job | None:
    """Return the newest job that has the features that a new job would compute, or is to compute them."""
    spec = resolve_spec(new.spec)
    dataset = dataset_named(session, new.spec.data.name)
    if spec["protocols"] != ["embed"] or dataset is None:
        return None
    siblings = select(Job).where(
        Job.parent_id == new.parent_id,
        Job.kind == "evaluate",
        Job.dataset_name == dataset.name,
        Job.dataset_digest == pinned_digest(session, dataset),
    )
    files = select(Checkpoint.id).where(Checkpoint.kind == EMBEDDINGS, Checkpoint.deleted_at.is_(None))
    files = files.where(Checkpoint.storage_key.endswith(f"/{EMBEDDINGS_FILE}"))
    files = files.where(Checkpoint.damaged_at.is_(None), Checkpoint.missing_at.is_(None))
    for job in session.execute(siblings.order_by(Job.id.desc())).scalars():
        is_same = all(job.spec[name] == spec[name] for name in ("protocols", "data", "features"))
        has_file = session.execute(files.where(Checkpoint.job_id == job.id).limit(1)).first() is not None
        if is_same and (job.status not in TERMINAL or (job.status == Status.SUCCEEDED and has_file)):
            return job
    return None


def create_baselines(submission: Submission, job_id: str, *, with_evaluation: bool = False) -> list[Job]:
    """Create jobs that measure the raw pixels and the untrained network as an evaluation has measured a checkpoint.

    A second request for the same evaluation returns the jobs of the first one.

    Args:
        job_id: of the evaluation, or of a training, which stands for its newest evaluation of a checkpoint.
        with_evaluation: whether a training that has no evaluation yet gets one of its newest checkpoint, too.

    Raises:
        NotFound: there is no such job.
        Conflict: there is no evaluation of a checkpoint.
    """

    def create(session: Session) -> Job:
        job = queries.get_job(session, job_id)
        evaluation = _evaluation_of(session, job)
        if evaluation is None and with_evaluation and (newest := _newest(session, job)) is not None:
            new = new_evaluation(session, newest.id, EvaluateBody(), submission.owner)
            evaluation = service.submit(session, new)
        if evaluation is None:
            raise Conflict("no evaluation has measured a checkpoint of this job; evaluate one first")
        submitted = _baselines(session, evaluation)
        return (
            submitted or [service.submit(session, new) for new in _new_baselines(session, evaluation, submission.owner)]
        )[0]

    first = submission.create(("baselines", job_id), Job, create)
    with submission.database.read() as session:
        return _baselines(session, queries.get_job(session, str(first.parent_id)))


def _newest(session: Session, job: Job) -> Checkpoint | None:
    """Return the newest checkpoint that can be measured."""
    rows = queries.checkpoints(session, job.id)
    return next((each for each in rows if each.kind == TRAINING and each.flaw is None), None)


def _evaluation_of(session: Session, job: Job) -> Job | None:
    statement = select(Job).where(Job.parent_id == job.id, Job.kind == "evaluate").order_by(Job.id.desc())
    candidates = [job] if job.kind == "evaluate" else session.execute(statement).scalars()
    for each in candidates:
        is_measured = any(protocol_facts(name).measures for name in each.spec["protocols"])
        if each.spec["features"]["kind"] == "checkpoint" and is_measured:
            return each
    if job.kind == "evaluate":
        raise Conflict("this evaluation measures nothing of a checkpoint that can be compared, as without labels")
    return None


def pending_baselines(session: Session, job_id: str) -> list[Job]:
    """Return the baselines of a training's evaluations that have not ended."""
    evaluations = select(Job.id).where(Job.parent_id == job_id, Job.kind == "evaluate")
    own = select(Job).where(Job.parent_id.in_(evaluations), Job.origin.startswith(_BASELINE))
    return list(session.execute(own.where(Job.status.not_in(TERMINAL)).order_by(Job.id)).scalars())


def _baselines(session: Session, evaluation: Job) -> list[Job]:
    own = select(Job).where(Job.parent_id == evaluation.id, Job.origin.startswith(_BASELINE)).order_by(Job.id)
    return list(session.execute(own).scalars())


def _new_baselines(session: Session, evaluation: Job, created_by: str) -> Iterator[NewJob]:
    trained = queries.get_job(session, _trained_id(session, evaluation))
    by_name: dict[str, dict[str, Any]] = {"raw pixels": {"kind": "pixels"}}
    by_name["untrained network"] = {"kind": "untrained", "backbone": trained.spec["backbone"]}
    for name, features in by_name.items():
        sent = evaluation.spec | {"features": features}
        yield NewJob(
            kind="evaluate",
            spec_sent=sent,
            spec=parse_spec("evaluate", sent),
            name=f"{name}, for {trained.name}"[:_MAX_NAME],
            priority=access.copied_priority(session, evaluation.priority),
            pool=evaluation.pool,
            gpus=evaluation.gpus,
            tags=tuple(queries.tags(session, [evaluation.id])[evaluation.id]),
            created_by=created_by,
            parent_id=evaluation.id,
            origin=f"{_BASELINE}{features['kind']}",
        )


def _trained_id(session: Session, evaluation: Job) -> str:
    return queries.get_checkpoint(session, evaluation.spec["features"]["checkpoint_id"]).job_id


def _sent(body: EvaluateBody, checkpoint_id: str, trained: Job) -> dict[str, Any]:
    sent = body.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    features = {"kind": "checkpoint", "checkpoint_id": checkpoint_id}
    return {"data": trained.spec["data"], **sent, "features": features}
