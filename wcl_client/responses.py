"""The JSON of requests and responses as types.

A test compares them with the published schema. A newer server may send fields that these types do not name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
Json = dict[str, Any]
JobKind = Literal["pretrain", "evaluate"]
FileKind = Literal["native", "backbone"]


class Audit(TypedDict):
    """The result of replaying the events of all jobs."""

    jobs: int
    attempts: int
    events: int
    deletions: int
    findings: list[Json]


class Progress(TypedDict):
    """The latest progress report of a run."""

    step: int
    total_steps: int
    epoch: float
    total_epochs: int
    images_per_second: float | None
    eta_seconds: float | None
    phase: str
    share: NotRequired[float | None]
    part: NotRequired[str | None]


class Job(TypedDict, total=False):
    """A job; `status`, `status_reason` and `kind` are open strings. A list omits the spec and the fields after it."""

    id: str
    kind: str
    name: str
    status: str
    status_reason: str | None
    status_message: str | None
    priority: int
    pool: str
    gpus: int
    nodes: int
    preemptible: bool
    max_seconds: int | None
    tags: list[str]
    dataset: Json
    attempt: int
    failures: int
    parent_id: str | None
    group_id: str | None
    sweep_id: str | None
    progress: Progress | None
    earlier_epochs: int
    latest_metrics: dict[str, float | None] | None
    cancel_requested_at: str | None
    pause_requested_at: str | None
    preempt_requested_at: str | None
    created_at: str
    updated_at: str
    started_at: str | None
    ended_at: str | None
    archived_at: str | None
    starred_at: str | None
    reference_at: str | None
    links: dict[str, str]
    spec: Json
    spec_version: int
    spec_sent: Json
    preset: str | None
    deviations: list[Json] | None
    resume_checkpoint_id: str | None
    created_by: str | None
    request_id: str | None
    owner: str | None
    status_by: str | None
    waiting: Json | None
    verdict: Json | None
    before_training: str | None
    pending: str | None
    weak_labels: Json | None
    metrics: list[Json]
    measures: Json | None
    lineage: list[Json]
    schedule: str | None
    explanation: Json | None
    warnings: list[str]
    note: str | None
    expected_time: Json | None
    thinned_at: str | None


class Checkpoint(TypedDict, total=False):
    """A registered checkpoint. A pinned one cannot be deleted; nothing is made from a damaged or missing file."""

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
    missing_at: str | None
    checked_at: str | None
    links: dict[str, str]


class Weights(TypedDict, total=False):
    """Imported weights, which trainings start from."""

    sha256: str
    name: str
    size: int
    backbone: Json
    image_size: int
    report: Json
    created_by: str | None
    created_at: str


class Artifact(TypedDict, total=False):
    """A small file for display that a run wrote."""

    name: str
    attempt: int
    media_type: str
    sha256: str
    size: int
    created_at: str
    links: dict[str, str]


class Evaluation(TypedDict, total=False):
    """One measured number."""

    id: str
    checkpoint_id: str | None
    protocol: str
    protocol_version: int
    metric: str
    title: str
    label: str
    epoch: int | None
    value: float | None
    stderr: float | None
    n: int | None
    interval: tuple[float, float] | None
    chance: float | None
    pixels: float | None
    untrained: float | None
    difference: Json | None
    params: Json
    details: Json | None
    seed: int
    dataset_digest: str
    split_digest: str
    created_at: str


class WeakGroups(TypedDict, total=False):
    """The weak-label groups of the monitor batch at the end of an epoch."""

    epochs: list[int]
    epoch: int | None
    step: int | None
    attempt: int | None
    num_images: int
    num_groups: int
    pair_precision: float | None
    pair_precision_chance: float | None
    groups: list[Json]


class Group(TypedDict, total=False):
    """A seed group: jobs that differ in their seed only. `results` are numbers over the seeds.

    `warnings` are those of its submission.
    """

    group_id: str
    items: list[Job]
    results: list[Json]
    warnings: list[str]


class Dataset(TypedDict, total=False):
    """A dataset that a worker announced; `counts` are images by split, `report` says how its folder was read.

    `state` is an open string: ready, being_read, refused or absent. `digest` is empty until the files are read.
    """

    name: str
    state: str
    read_share: float | None
    state_message: str | None
    digest: str
    kind: str
    counts: dict[str, int]
    classes: list[str]
    image_size: int | None
    class_counts: dict[str, list[int]] | None
    label_lists: dict[str, Json]
    samples: Json | None
    report: Json | None
    note: str | None
    updated_at: str


class Device(TypedDict, total=False):
    """A device of a worker: a GPU, a MIG instance, or a stand-in.

    `problem` says why it gets no job; None if it works. `load` is from 0 to 1, `memory_used` in bytes, `temperature` in
    degrees Celsius; None where unknown. `job_id` is the job that uses it.
    """

    uuid: str
    index: int
    name: str
    memory_bytes: int | None
    problem: str | None
    load: float | None
    memory_used: int | None
    temperature: int | None
    job_id: str | None


class Worker(TypedDict, total=False):
    """A worker; `state` is an open string, `is_live` is true while the worker runs.

    `gpus` is the number of its working devices, `cpu_slots` the number of jobs without GPUs that it runs at once.

    `disk_free_bytes` is of the fuller of the disks that its runs write to.
    `pending_datasets` are those that it still reads, `refused_datasets` those that it refuses, with the reasons.
    `unable` is the reason why it takes no jobs now, and `unable_message` the same for people; None if it takes jobs.
    """

    id: str
    name: str
    pool: str
    gpus: int
    state: str
    is_live: bool
    job_id: str | None
    devices: list[Device]
    cpu_slots: int | None
    address: str | None
    cpu_job_ids: list[str]
    disk_free_bytes: int | None
    datasets: dict[str, str]
    pending_datasets: list[str]
    refused_datasets: dict[str, str]
    spec_versions: list[str]
    version: str | None
    started_at: str
    seen_at: str
    drain_requested_at: str | None
    cordoned_at: str | None
    unable: str | None
    unable_message: str | None


class JobOptions(TypedDict, total=False):
    """The options of a new job beside its spec. The server's default replaces an option that is absent or None.

    `after` holds ids of jobs that must succeed first, or `{"job_id": ..., "until": "checkpoint"}`. `max_seconds` limits
    the total running time; the job then fails with `timeout`. A job of higher priority may preempt a `preemptible` job,
    which continues later.
    """

    preset: str | None
    name: str | None
    tags: Sequence[str]
    after: Sequence[str | Mapping[str, str]]
    priority: int | None
    pool: str | None
    gpus: int | None
    max_seconds: int | None
    preemptible: bool | None


class Activity(TypedDict):
    """An entry of the activity log; `action` is an open string, such as `job.cancel`."""

    id: str
    at: str
    actor: str
    actor_id: str
    action: str
    object_id: str
    object_name: str
    details: Json | None
    title: str
    text: str


class Key(TypedDict):
    """A key without its secret; `expires_at` is null for a key that does not expire."""

    id: str
    name: str
    scopes: list[str]
    created_at: str
    last_used_at: str | None
    revoked_at: str | None
    expires_at: str | None
    rotated_at: str | None
    max_waiting: int | None
    max_devices: int | None
    max_submissions: int | None
    is_active: bool
    proxy_user: NotRequired[str | None]
    project: NotRequired[str | None]  # null for a key of all projects; absent: of an older server
    warning: NotRequired[str | None]  # of a new or renamed key: other keys have its name


class WhoAmI(Key):
    """The key of the client; a limit of null is that of the service in `limits`, where null is none."""

    role: str
    limits: dict[str, int | None]
    version: str


class NewKey(Key):
    """A new or rotated key with its secret; None if a call with the same idempotency key has created it before."""

    key: str | None


class KeyList(TypedDict):
    """All keys; `notice` warns if no key has `admin`, or if all that have it expire."""

    items: list[Key]
    notice: str | None


class Webhook(TypedDict):
    """A webhook; `secret` is only in the response that creates it."""

    id: str
    name: str
    url: str
    format: str
    events: list[str]
    rules: list[Json]
    stalled_minutes: int
    tag: str | None
    job_name: str | None
    kind: str | None
    owner_id: str | None
    own_jobs: bool
    enabled: bool
    disabled_reason: str | None
    created_by: str | None
    created_at: str


class NewWebhook(Webhook):
    """A new webhook with the secret of its signatures."""

    secret: str


class Delivery(TypedDict):
    """A message of a webhook; `state` is an open string: pending, delivered or failed."""

    id: str
    type: str
    job_id: str | None
    state: str
    attempts: int
    last_status: int | None
    last_error: str | None
    due_at: str
    created_at: str
    ended_at: str | None
