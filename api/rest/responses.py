"""What clients are sent, as types: the shapes of JSON that OpenAPI publishes.  `/v1` only grows."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict

from api.rest.deviations import Deviation

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
    sweep_id: str | None
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

    `kind` is `training`, or `embeddings`: features of a dataset, which an evaluation wrote.  Since `damaged_at` its
    file is known to be absent or changed; no run begins from it.
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
    damaged_at: str | None
    links: dict[str, str]


class ArtifactAnswer(TypedDict):
    """A small file that a run made to be looked at."""

    name: str
    attempt: int
    media_type: str
    sha256: str
    size: int
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


class SamplesAnswer(TypedDict):
    """Where a picture of a dataset's images is: a row for each of the first classes, squares of `side` pixels."""

    png: str
    rows: int
    columns: int
    side: int


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
    samples: SamplesAnswer | None
    updated_at: str


class WorkerAnswer(TypedDict):
    """A worker: idle, busy, stopped or lost."""

    id: str
    name: str
    pool: str
    gpus: int
    state: str
    is_live: bool
    job_id: str | None
    datasets: dict[str, str]
    spec_versions: list[str]
    started_at: str
    seen_at: str
    drain_requested_at: str | None
