"""Bodies of `POST /v1/checkpoints/{id}/evaluate`: an evaluation spec whose features the address names."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field
from sqlalchemy.orm import Session

from api.http.idempotency import Submission
from api.rest.job_bodies import checked_spec
from jobs import queries
from jobs import submission as service
from jobs.errors import Conflict, FieldError, Invalid
from jobs.models import TRAINING, Job
from jobs.new_job import NewJob, default_name
from wcl_core.config import DataConfig, ProtocolSettings, parse_spec

_MAX_NAME = 200


class EvaluateBody(ProtocolSettings):
    """The evaluation of a checkpoint: an EvaluateSpec without `features`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"protocols": ["knn", "linear"]}]})

    data: DataConfig | None = Field(
        default=None, description="The data to evaluate on; by default the checkpoint's training data."
    )
    threads: int | None = Field(default=None, ge=1, le=512)


def create_evaluation(submission: Submission, checkpoint_id: str, body: EvaluateBody) -> Job:
    """Create a job that evaluates a checkpoint, once for each idempotency key.

    Raises:
        Invalid: with pointers into the body, which is the spec itself.
        NotFound, Conflict: as `new_evaluation`.
    """

    def create(session: Session) -> Job:
        return service.submit(session, new_evaluation(session, checkpoint_id, body, submission.owner))

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
        priority=trained.priority,
        pool=trained.pool,
        gpus=min(1, trained.gpus),  # an evaluation computes on one device
        tags=tuple(queries.tags(session, [trained.id])[trained.id]),
        created_by=created_by,
        parent_id=trained.id,
    )


def _sent(body: EvaluateBody, checkpoint_id: str, trained: Job) -> dict[str, Any]:
    sent = body.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    features = {"kind": "checkpoint", "checkpoint_id": checkpoint_id}
    return {"data": trained.spec["data"], **sent, "features": features}
