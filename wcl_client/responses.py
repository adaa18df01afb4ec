"""What goes to the server and what it answers, as types; an older client may meet fields that are not named here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
Json = dict[str, Any]
JobKind = Literal["pretrain", "evaluate"]
FileKind = Literal["native", "backbone"]


class Progress(TypedDict):
    """Where a run is, as it last said."""

    step: int
    total_steps: int
    epoch: float
    total_epochs: int
    images_per_second: float | None
    eta_seconds: float | None
    phase: str


class Job(TypedDict, total=False):
    """A job as the server renders it; status, reason and kind are open strings."""

    id: str
    kind: str
    name: str | None
    status: str
    status_reason: str | None
    status_message: str | None
    priority: int
    pool: str
    tags: list[str]
    dataset: Json
    spec: Json
    attempt: int
    failures: int
    parent_id: str | None
    group_id: str | None
    preset: str | None
    deviations: list[Json] | None
    max_seconds: int | None
    preemptible: bool
    waiting: Json | None
    progress: Progress | None
    created_at: str
    started_at: str | None
    ended_at: str | None
    latest_metrics: dict[str, float | None] | None
    links: dict[str, str]


class Checkpoint(TypedDict, total=False):
    """A registered checkpoint; a pinned one cannot be deleted, and no run begins from a damaged one."""

    id: str
    job_id: str
    attempt: int
    kind: str
    step: int
    epoch: float
    sha256: str
    size: int
    metrics: Json
    pinned: bool
    created_at: str
    damaged_at: str | None
    links: dict[str, str]


class Artifact(TypedDict, total=False):
    """A small file that a run made to be looked at."""

    name: str
    attempt: int
    media_type: str
    sha256: str
    size: int
    created_at: str
    links: dict[str, str]


class Evaluation(TypedDict, total=False):
    """One measured number."""

    protocol: str
    protocol_version: int
    metric: str
    value: float | None
    stderr: float | None
    n: int | None
    params: Json
    details: Json | None
    seed: int


class WeakGroups(TypedDict, total=False):
    """How the weak labels group the probe's images at the end of an epoch."""

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
    """Jobs that differ in their seed alone; `results` are numbers over the seeds."""

    group_id: str
    items: list[Job]
    results: list[Json]


class JobOptions(TypedDict, total=False):
    """What may be said of a job beside its spec; what is absent or None is left to the server's defaults.

    `after` are ids of jobs that have to succeed first, or `{"job_id": ..., "until": "checkpoint"}`.  `max_seconds` are
    of running time; then the job ends with the reason `timeout`.  A job of higher priority may take the worker of a
    `preemptible` one, which goes on later.
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
