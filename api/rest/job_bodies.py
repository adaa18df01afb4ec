"""Bodies of requests that create or change jobs, and the jobs that they create."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.config import JsonDict
from sqlalchemy.orm import Session

from api.http import field_errors
from api.http.idempotency import Submission
from api.rest.presets import sent_spec
from jobs import queries
from jobs import submission as service
from jobs.errors import FieldError, Invalid
from jobs.models import Job
from jobs.new_job import NewJob, default_name, kind_of, options_of
from wcl_core.config import Kind, Seed, Spec, parse_spec
from wcl_core.config.fields import DatasetName

T = TypeVar("T")
_MAX_NAME = 200
MAX_BATCH = 1_000  # jobs
MAX_SECONDS = 10 * 366 * 86_400  # ten years: none means no limit


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected text on one line, without control characters")
    return text


Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=_MAX_NAME), AfterValidator(_printable)
]
Tag = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64), AfterValidator(_printable)]
Priority = Annotated[int, Field(ge=-1000, le=1000, description="A job of higher priority runs earlier.")]
_SPEC_EXAMPLE: JsonDict = {"seed": 1, "epochs": 30, "warmup_epochs": 3, "weak_augmentation_epochs": 3}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Needed(_Body):
    """A job that this one waits for: until it has succeeded, or until it has a checkpoint."""

    job_id: UUID
    until: Literal["success", "checkpoint"] = "success"


def _needed(value: Any) -> Any:
    """Accept an id alone, which means success."""
    if not isinstance(value, str):
        return value
    try:
        return {"job_id": UUID(value)}
    except ValueError:
        raise ValueError("expected the id of a job, a UUID") from None


Need = Annotated[Needed, BeforeValidator(_needed, json_schema_input_type=UUID | Needed)]


def _differ(seeds: list[int]) -> list[int]:
    if len(set(seeds)) != len(seeds):
        raise ValueError("must not repeat a value")
    return seeds


Seeds = Annotated[list[Seed], Field(min_length=1, max_length=32), AfterValidator(_differ)]


class JobOptions(_Body):
    """Fields of a job beside its spec, in requests for jobs and for sweeps: `jobs.new_job.OPTIONS`, and the tags."""

    priority: Priority = 0
    pool: str = Field(
        default="default", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="The pool of workers that may run it."
    )
    gpus: int | None = Field(
        default=None, ge=0, le=64, description="GPUs that each run needs; null: one where the pool has GPUs, else none."
    )
    tags: list[Tag] = Field(default=[], max_length=50)
    preemptible: bool = Field(default=False, description="Whether a job of higher priority may preempt it.")
    max_seconds: int | None = Field(
        default=None,
        ge=1,
        le=MAX_SECONDS,
        description="Limit on total running time over all attempts, in seconds; the job then fails with `timeout`.",
    )


class _JobStart(_Body):
    kind: Literal["pretrain", "evaluate"]
    spec: dict[str, Any] = Field(default={}, description="PretrainSpec or EvaluateSpec; unknown fields are errors.")
    preset: str | None = Field(default=None, max_length=64, description="A name from /v1/presets.")
    name: Name | None = None


class BatchJob(JobOptions, _JobStart):
    """A job of a batch: a job to submit, without `seeds`."""

    after: list[Need] = Field(default=[], max_length=50, description="Dependencies: jobs that have to succeed first.")


class BatchBody(_Body):
    """Jobs to submit together: all of them, or none."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"jobs": [{"kind": "pretrain", "preset": "digits-cpu", "spec": {"seed": seed}} for seed in (1, 2)]}
            ]
        }
    )

    jobs: list[BatchJob] = Field(min_length=1, max_length=MAX_BATCH)


class JobBody(BatchJob):
    """A job to submit.  The spec is validated by the rules of its kind; with a preset it holds only the differences."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"kind": "pretrain", "preset": "digits-cpu", "spec": _SPEC_EXAMPLE, "name": "first", "tags": ["trial"]},
                {
                    "kind": "evaluate",
                    "spec": {"data": {"name": "digits", "image_size": 8}, "features": {"kind": "pixels"}},
                },
            ]
        }
    )

    seeds: Seeds | None = Field(default=None, description="One job for each seed, together a seed group.")


def _with_plain_line_ends(value: Any) -> Any:
    """Return text as browsers show it: their forms send line ends of two characters."""
    return value.replace("\r\n", "\n").rstrip() if isinstance(value, str) else value


Note = Annotated[
    str,
    Field(max_length=10_000, description="Text in Markdown; an empty one removes the note."),
    BeforeValidator(_with_plain_line_ends),
]


class JobChange(_Body):
    """Changes of a job; the priority only while the job waits."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "best so far", "tags": ["keep"]}]})

    name: Name | None = None
    priority: Priority | None = None
    tags: list[Tag] | None = Field(default=None, max_length=50)
    starred: bool | None = None
    note: Note | None = None

    @model_validator(mode="after")
    def _has_a_field(self) -> JobChange:
        if self == JobChange.model_construct():
            raise ValueError("expected at least one of name, priority, tags, starred, note")
        return self


class CloneBody(_Body):
    """A clone: the fields of the spec that differ from the cloned job's spec."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"spec": {"seed": 2}, "name": "second seed"}]})

    name: Name | None = Field(default=None, description="By default the name of the cloned job with the next number.")
    spec: dict[str, Any] = Field(default={}, description="Fields that override those of the cloned spec.")


class ContinueBody(_Body):
    """More training of a finished job: more epochs on the same data, or a run on other data from its weights."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"epochs": 200}, {"data": "flowers", "epochs": 50}]})

    epochs: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Number of epochs.  By default those that it lacks to 1,000 steps, else as many as it had, "
        "the number on its page; with `data`, as many as it had.",
    )
    data: DatasetName | None = Field(default=None, description="The dataset to train further on; unset, the same one.")


def create_jobs(submission: Submission, body: JobBody, new: Sequence[NewJob], answer: Callable[[Session, Job], T]) -> T:
    """Create the jobs of a body, once for each idempotency key; return the answer about the job.

    Args:
        submission: the request.
        body: of the request.
        new: its jobs.
        answer: reads what the response has, of the job or of the first one of the group.

    Raises:
        Invalid: as `Submission.create` and `jobs.submission.submit`.
    """

    def create(session: Session) -> Job:
        return service.submit(session, new[0]) if body.seeds is None else service.submit_group(session, new)[0]

    request: Any = body.model_dump(mode="json", exclude_unset=True)
    parent = new[0].parent_id
    request = request if parent is None else (request, parent)
    return submission.answered(request, Job, create, answer, len(new))


def create_batch(submission: Submission, body: BatchBody) -> list[Job]:
    """Create the jobs of a batch, once for each idempotency key, in the order of the body.

    Raises:
        Invalid: as `Submission.create_batch` and `jobs.submission.submit_batch`.
    """
    new = service.each_of_batch(
        body.jobs, lambda job: _new_job(job, sent_spec(job.preset, job.kind, job.spec), submission.owner, None)
    )
    request = ("batch", body.model_dump(mode="json", exclude_unset=True))
    return submission.create_batch(request, lambda session: service.submit_batch(session, new), len(new))


def create_retry(submission: Submission, job_id: str) -> Job:
    """Create a retry of a job, once for each idempotency key.

    Raises:
        NotFound, Conflict, Invalid: as `Submission.create` and `jobs.submission.retry`.
    """

    def create(session: Session) -> Job:
        with checked_spec(kind_of(queries.get_job(session, job_id))):
            return service.retry(session, job_id, submission.owner)

    return submission.create(("retry", job_id), Job, create)


def create_continued(submission: Submission, job_id: str, body: ContinueBody) -> Job:
    """Create a job that trains a finished one further, once for each idempotency key.

    Raises:
        NotFound, Conflict, Invalid: as `Submission.create` and `jobs.submission.go_on`.
    """

    def create(session: Session) -> Job:
        with checked_spec("pretrain"):
            return service.go_on(session, job_id, body.epochs, body.data, submission.owner)

    return submission.create(("continue", job_id, body.epochs, body.data), Job, create)


def create_clone(submission: Submission, job_id: str, body: CloneBody) -> Job:
    """Create a clone of a job, once for each idempotency key.

    Raises:
        NotFound, Invalid: as `Submission.create` and `jobs.submission.clone`.
    """

    def create(session: Session) -> Job:
        with checked_spec(kind_of(queries.get_job(session, job_id))):
            return service.clone(session, job_id, body.spec, submission.owner, body.name)

    named = () if body.name is None else (body.name,)
    return submission.create(("clone", job_id, body.spec, *named), Job, create)


def new_jobs(body: JobBody, created_by: str, parent_id: str | None = None) -> list[NewJob]:
    """Return the jobs of a body: one, or one for each of its seeds.

    Raises:
        Invalid: an unknown preset, or wrong fields of the spec.
    """
    sent = sent_spec(body.preset, body.kind, body.spec)
    if body.seeds is None:
        return [_new_job(body, sent, created_by, parent_id)]
    if "seed" in body.spec:
        raise Invalid([FieldError("/spec/seed", "expected either this field or `seeds`, with one seed for each job")])
    jobs = [_new_job(body, sent | {"seed": seed}, created_by, parent_id) for seed in body.seeds]
    return [replace(job, name=_seed_name(job, seed)) for job, seed in zip(jobs, body.seeds, strict=True)]


def _seed_name(job: NewJob, seed: int) -> str:
    end = f", seed {seed}"
    return (job.name or default_name(job.spec))[: _MAX_NAME - len(end)] + end


def _new_job(body: BatchJob, sent: dict[str, Any], created_by: str, parent_id: str | None) -> NewJob:
    until_success = {str(need.job_id) for need in body.after if need.until == "success"}
    after = tuple(dict.fromkeys(str(need.job_id) for need in body.after))
    return NewJob(
        kind=body.kind,
        spec_sent=sent,
        spec=_parsed(body.kind, sent),
        name=body.name,
        tags=tuple(dict.fromkeys(body.tags)),
        after=after,
        after_checkpoint=frozenset(after) - until_success,
        created_by=created_by,
        parent_id=parent_id,
        preset=body.preset,
        **options_of(body),
    )


def _parsed(kind: Kind, sent: dict[str, Any]) -> Spec:
    with checked_spec(kind):
        return parse_spec(kind, sent)


@contextmanager
def checked_spec(kind: Kind) -> Iterator[None]:
    """Turn the refusal of a spec, wherever it was merged, into the errors of the request.

    Raises:
        Invalid: with pointers below `/spec`.
    """
    try:
        yield
    except ValidationError as error:
        raise Invalid(field_errors.of_spec(error, kind)) from error
