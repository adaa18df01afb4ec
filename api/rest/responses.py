"""Responses of the REST interface: pydantic models, built from rows and published by OpenAPI.

A field has the name of its column, so a new column needs one line here.  No response here contains a path or a secret.
A later version of `/v1` may add fields, and removes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Self
from urllib.parse import quote

from pydantic import BaseModel, BeforeValidator, ConfigDict
from sqlalchemy.orm import Session

from api.http.proxies import rooted
from api.rest.presets import PresetDeviation, preset_deviations
from jobs import (
    baselines,
    datasets,
    estimates,
    lineage,
    queries,
    reasons,
    seed_groups,
    verdicts,
    waiting,
    weak_labels,
)
from jobs.advice import advice_of
from jobs.curves import CurvePoint
from jobs.datasets import DatasetState, SheetLayout
from jobs.models import TRAINING, Artifact, Checkpoint, Dataset, Evaluation, Job
from jobs.step_times import StepTime
from wcl_core.config import result_title
from wcl_core.metrics import in_order, metric_facts
from wcl_core.per_image import KEY as PER_IMAGE
from wcl_core.protocol import DatasetReport
from wcl_core.schedule import schedule_of

Json = dict[str, Any]
_JOB_PARTS = ("stream", "events", "attempts", "logs", "metrics", "checkpoints", "artifacts", "groups", "evaluations")


def iso(milliseconds: int) -> str:
    """Return a time of the database in ISO 8601, for example 2026-11-24T20:28:00.578Z."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _iso(value: Any) -> Any:
    return iso(value) if isinstance(value, int) else value


Time = Annotated[str, BeforeValidator(_iso)]


class Response(BaseModel):
    """A response, or a part of one."""

    model_config = ConfigDict(from_attributes=True)

    @classmethod
    def of(cls, row: Any, **more: Any) -> Self:
        """Return the response for a row; `more` holds the fields that are not columns."""
        values = vars(row) | more  # several times faster than reading each attribute
        values |= {name: getattr(row, name) for name in cls.model_fields.keys() - values.keys()}
        return cls.model_validate(values)


# --- jobs ------------------------------------------------------------------------------------------------------------


class DatasetVersion(Response):
    """The dataset that a job is pinned to."""

    name: str
    digest: str


class JobSummary(Response):
    """A job in a list; `status`, `status_reason` and `kind` are open strings.

    `progress` counts the steps and epochs of a job that a training continues; these are `earlier_epochs`, else 0.
    """

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
    dataset: DatasetVersion
    attempt: int
    failures: int
    parent_id: str | None
    group_id: str | None
    sweep_id: str | None
    progress: Json | None
    earlier_epochs: int
    latest_metrics: dict[str, float | None] | None
    cancel_requested_at: Time | None
    pause_requested_at: Time | None
    preempt_requested_at: Time | None
    created_at: Time
    updated_at: Time
    started_at: Time | None
    ended_at: Time | None
    archived_at: Time | None
    starred_at: Time | None
    reference_at: Time | None
    links: dict[str, str]


class WaitingResponse(Response):
    """The reason why a job waits.

    `cause` is an open string; `position` is the place in the queue of the job's pool, from 1 on, and beyond about 1,000
    an estimate (`is_estimate`); `until` is the time before which the job is not tried again; `needs` are the ids of the
    jobs that it waits for.
    """

    cause: str
    message: str
    position: int | None
    until: Time | None
    needs: list[str]
    is_estimate: bool


class TrainingTime(Response):
    """The time that a training is expected to take, from its newest checkpoint on, as a range and as a phrase.

    `job` is the earlier run of the pool whose speed it follows from; all but the phrase is null where it is unknown.
    `busy` says what the other work of the machine costs; null while it has little.
    """

    low_seconds: float | None
    high_seconds: float | None
    job: str | None
    text: str
    busy: str | None


class WeakLabelQuality(Response):
    """The quality of a run's weak labels in its latest report; a value that was not reported is null.

    `components` are those of a batch, and `largest_share` is the share of the batch in the largest one.
    `view_agreement` is the adjusted Rand index of the labels by the two views.  `pair_precision` is the share of the
    pairs with one weak label that are of one class, and `pair_precision_chance` that of random pairs.  `warning` says
    why the labels are mostly noise and what to do; it is null if they are not, and in the first fifth of the epochs.
    """

    components: float | None
    largest_share: float | None
    view_agreement: float | None
    pair_precision: float | None
    pair_precision_chance: float | None
    warning: str | None


class MetricResponse(Response):
    """The latest value of a metric, with its name for people; `value` is null for one that was not finite.

    `about` explains the metric in a sentence, and may be empty.  A share is in 0..1 and is shown as a percentage.
    """

    name: str
    title: str
    about: str
    is_share: bool
    value: float | None


class ContrastResponse(Response):
    """An accuracy of a job and its other seeds minus that of `other`, at a step that both sides have measured.

    `title` names the accuracy: that of kNN, or without labels the view accuracy.

    `low` and `high` are the ends of its 95 % interval, and `method` names how it was computed.  Every main measure that
    both sides have counts: `finding` is better, worse, mixed or unclear over all of them after Holm's correction for
    their number, and open while a job goes on.  `is_shown` says whether one of them is shown, and `sentence` says all
    of it for people.  `job_ids` are the jobs of both sides.
    """

    other: str
    title: str
    sentence: str
    difference: float
    low: float
    high: float
    method: str
    is_shown: bool
    finding: str
    step: int
    job_ids: list[str]


class GainResponse(Response):
    """One accuracy of a training minus that of the untrained network, with its 95 % interval from `low` to `high`.

    `about` explains the measure in a sentence, and may be empty.

    `is_paired` says whether the two were compared image by image; `method` names how the interval was computed.
    `is_shown` says whether the difference is shown after Holm's correction for all measures of the verdict, and
    `finding` is better, worse or unclear, and open while the job goes on.  `epoch` is that of the measured checkpoint
    if it is not the last one.
    `evaluation_id` is null for an accuracy that the training itself measures.
    """

    title: str
    about: str
    metric: str
    accuracy: float
    untrained: float
    difference: float
    low: float
    high: float
    method: str
    is_paired: bool
    is_shown: bool
    finding: str
    num_images: int
    epoch: int | None
    evaluation_id: str | None


class VerdictResponse(Response):
    """Whether a training has learned, or what an evaluation shows: accuracies beside the untrained network.

    `measures` are all accuracies that have a baseline, and `finding` is better, worse, mixed or unclear over all of
    them, after Holm's correction for their number.  While the job goes on, `finding` is open and nothing is shown.
    `headline` says it in one sentence, and `sentence` adds numbers.

    The other numbers are of the first of them.  `metric` is that of kNN, or without labels the view accuracy: the share
    of images that are recognised by another view of them.  For an evaluation it is protocol and metric.
    `accuracy` has its 95 % interval from `low` to `high`; `chance` is null where it is unknown.
    `difference` is the accuracy minus that of the untrained network, `margin` half of its interval, and `is_shown`
    whether it is shown.  `contrasts` compare over seeds, and with the
    twin: a SimCLR run with the settings of a WCL run, or the other way round.
    `is_random` is false if the training started from weights; then `untrained` is the accuracy of these.
    Of the view accuracy only: `pixels` is that of raw pixels, null where it is not measured, and `is_held_out` says
    whether the training has not seen the images.
    """

    sentence: str
    headline: str
    finding: str
    measures: list[GainResponse]
    accuracy: float
    low: float
    high: float
    untrained: float
    chance: float | None
    difference: float
    margin: float
    is_shown: bool
    num_images: int
    contrasts: list[ContrastResponse]
    is_random: bool
    metric: str
    pixels: float | None
    is_held_out: bool


class MeasuredResponse(Response):
    """The checkpoint that an evaluation measures, and the training that wrote it; `sentence` says so for people."""

    checkpoint_id: str
    step: int
    epoch: int
    job_id: str
    job_name: str
    job_status: str
    epochs: int
    sentence: str


class OriginResponse(Response):
    """One step of a job's lineage: a job, or imported weights, that the one before comes from.

    `relation` is an open string: continues, retries, starts_from, evaluates or copies.  `job_id` is null for imported
    weights; `step` is that of the checkpoint that was taken.
    """

    relation: str
    name: str
    job_id: str | None
    step: int | None
    weights: str | None


class ExplanationResponse(Response):
    """What the reason of a job's status means, and what to do; `page` explains all reasons."""

    title: str
    meaning: str
    advice: str
    page: str


class JobResponse(JobSummary):
    """A job with its spec: as resolved, with all defaults, and as it was sent.

    `deviations` are the fields that differ from the job's preset; null without a preset.  `waiting` is null once the
    job runs or has ended.  `weak_labels` is null until a run reports weak labels,
    and `verdict` until an accuracy and that of the untrained network are measured.  `pending`
    is the request (cancel, pause, preemption, drain of its worker) that a running job has yet to carry out, with the
    work that it waits for.  `metrics` are the latest metrics with their names for people, the most telling first.
    `measures` is the checkpoint that an evaluation measures; null for other jobs.

    `lineage` is what the job comes from, the nearest first.  `schedule` is the form of a training's learning rate, for
    people; null for an evaluation.  `explanation` explains `status_reason`; null for a reason without one.  `warnings`
    say why a training with this spec hardly learns; none for a cancelled one.
    `note` is a user's text in Markdown.
    `before_training` says so while the latest accuracy of a training is that of its network before the first step; else
    null.
    `expected_time` is of a training that has yet to report how long it takes; null for other jobs.

    `thinned_at` is when the points of long curves were thinned out, as the service does some time after the end of a
    job; null while all are kept.
    `request_id` is of the submission, as the logs of server and workers name it; null if no request has submitted it.
    `owner` is the name of the key that submitted the job, `created_by` its id.  `status_by` is the name of the person
    or key that paused or cancelled it.
    """

    spec_version: int
    spec: Json
    spec_sent: Json
    preset: str | None
    deviations: list[PresetDeviation] | None
    resume_checkpoint_id: str | None
    created_by: str | None
    request_id: str | None
    owner: str | None
    status_by: str | None
    waiting: WaitingResponse | None
    verdict: VerdictResponse | None
    before_training: str | None
    pending: str | None
    weak_labels: WeakLabelQuality | None
    metrics: list[MetricResponse]
    measures: MeasuredResponse | None
    lineage: list[OriginResponse]
    schedule: str | None
    explanation: ExplanationResponse | None
    note: str | None
    expected_time: TrainingTime | None
    warnings: list[str]
    thinned_at: Time | None


def job_summary(row: Job, tags: Sequence[str]) -> JobSummary:
    return JobSummary.of(row, **_beside_columns(row, tags))


def job(session: Session, row: Job, tags: Sequence[str]) -> JobResponse:
    """Return a job with its spec, with the reason why it waits, and with a pending request."""
    deviations = preset_deviations(row.preset, row.spec)
    quality = weak_labels.lasting_quality(session, row)
    beside = _beside_columns(row, tags)
    why, request = waiting.explain(session, row), waiting.pending(session, row)
    judged = _verdict(verdicts.verdict(session, row))
    beside |= {"waiting": why, "pending": request, "weak_labels": quality, "verdict": judged, "metrics": _metrics(row)}
    beside |= {"before_training": verdicts.before_training(session, [row]).get(row.id)}
    beside |= {"measures": queries.measured_checkpoint(session, row)}
    beside |= {"lineage": lineage.lineage(session, row), "schedule": schedule_of(row.spec)}
    beside |= {"explanation": _explanation(row.status_reason), "expected_time": estimates.expected_time(session, row)}
    beside |= {"warnings": [] if row.status == "cancelled" else advice_of(session, row)}
    beside |= {"owner": queries.owner(session, row.created_by), "status_by": queries.status_by(session, row)}
    return JobResponse.of(row, **beside, deviations=deviations)


def _explanation(reason: str | None) -> ExplanationResponse | None:
    if (explanation := reasons.explain(reason or "")) is None:
        return None
    return ExplanationResponse.of(explanation, page=rooted(f"/troubleshooting#{reason}"))


def _verdict(judged: verdicts.Verdict | None) -> VerdictResponse | None:
    if judged is None:
        return None
    contrasts = [contrast(each) for each in judged.contrasts]
    return VerdictResponse.of(judged, contrasts=contrasts, measures=[_gain(each) for each in judged.gains])


def _gain(judged: verdicts.Gain) -> GainResponse:
    gap = judged.difference
    return GainResponse.of(judged, difference=gap.value, low=gap.low, high=gap.high, method=gap.method)


def contrast(judged: verdicts.Contrast) -> ContrastResponse:
    facts = judged.difference
    return ContrastResponse.of(judged, difference=facts.value, low=facts.low, high=facts.high, method=facts.method)


def _metrics(row: Job) -> list[MetricResponse]:
    latest = in_order(row.latest_metrics or {})
    return [MetricResponse(name=name, value=value, **metric_facts(name)._asdict()) for name, value in latest]


def _beside_columns(row: Job, tags: Sequence[str]) -> Json:
    here = rooted(f"/v1/jobs/{row.id}")
    return {
        "tags": list(tags),
        "dataset": {"name": row.dataset_name, "digest": row.dataset_digest},
        "links": {"self": here, "page": rooted(f"/jobs/{row.id}")} | {part: f"{here}/{part}" for part in _JOB_PARTS},
    }


# --- parts of a job --------------------------------------------------------------------------------------------------


class NodeResponse(Response):
    """A worker of an attempt on several, with its address and its devices."""

    node: int
    worker: str
    worker_id: str
    address: str
    devices: list[str]


class AttemptResponse(Response):
    """One execution of a job; `devices` are the UUIDs of those that it holds or has held, on all its workers.

    `nodes` are its workers if it runs on several; `worker` is the first of them.
    """

    number: int
    worker: str
    started_at: Time
    ended_at: Time | None
    end_reason: str | None
    start_step: int | None
    environment: Json | None
    devices: list[str]
    nodes: list[NodeResponse]


def _without_path(data: Any) -> Any:
    return {name: value for name, value in data.items() if name != "path"} if isinstance(data, dict) else data


class EventResponse(Response):
    """An event of a job; events are numbered without a gap."""

    seq: int
    type: str
    at: Time
    data: Annotated[Json, BeforeValidator(_without_path)]  # responses omit the place of a file in the storage


class LogResponse(Response):
    """One line that the training run wrote; `stream` is `run` or `output`."""

    attempt: int
    seq: int
    stream: str
    line: str
    at: Time


class ArtifactResponse(Response):
    """A small file for display that a run wrote."""

    name: str
    attempt: int
    media_type: str
    sha256: str
    size: int
    created_at: Time
    links: dict[str, str]


def artifact(row: Artifact) -> ArtifactResponse:
    here = rooted(f"/v1/jobs/{row.job_id}")
    return ArtifactResponse.of(row, links={"self": f"{here}/artifacts/{row.name}", "job": here})


class DifferenceResponse(Response):
    """A difference of two accuracies with its 95 % interval; `method` names how the interval was computed."""

    value: float
    low: float
    high: float
    method: str
    is_shown: bool


class EvaluationResponse(Response):
    """One measured number; `title` names it for people, and `details` holds intermediate results.

    `interval` is the 95 % interval of a share of the test images (Wilson); null for other numbers.  The packed results
    of the single images, with which the service compares in pairs, are left out of `details`.

    `label` is the title with the settings that tell it from others of its protocol, and `epoch` that of the checkpoint.
    `chance`, `pixels` and `untrained` are what it must beat: the largest class alone, the raw pixels, the untrained
    network; each is null where it is not measured.  `difference` is that to the untrained network.
    """

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
    params: Json
    details: Json | None
    seed: int
    dataset_digest: str
    split_digest: str
    created_at: Time
    chance: float | None
    pixels: float | None
    untrained: float | None
    difference: DifferenceResponse | None


class SeriesResponse(Response):
    """One curve; a point that stands for several steps has their last value and their extremes."""

    name: str
    points: list[Json]


def evaluations(session: Session, rows: Sequence[Evaluation]) -> list[EvaluationResponse]:
    around = baselines.beside(session, rows)
    return [_evaluation(row, around.get(row.id, baselines.Beside())) for row in rows]


def _evaluation(row: Evaluation, around: baselines.Beside) -> EvaluationResponse:
    gap = around.difference
    beside = {name: getattr(around, name) for name in ("epoch", "chance", "pixels", "untrained")}
    beside |= {"title": result_title(row.protocol, row.metric), "label": baselines.label(row)}
    beside |= {"interval": seed_groups.share_interval(row)}
    details = row.details and {name: value for name, value in row.details.items() if name != PER_IMAGE}
    return EvaluationResponse.of(
        row, details=details, difference=gap and DifferenceResponse.model_validate(gap), **beside
    )


def series(name: str, points: Sequence[CurvePoint]) -> Json:
    """Return a `SeriesResponse` as plain values: validating tens of thousands of points takes longer than reading."""
    return {"name": name, "points": [point._asdict() for point in points]}


def step_time(sample: StepTime) -> Json:
    return {"step": sample.step, "at": iso(sample.at), "attempt": sample.attempt}


# --- checkpoints, datasets, workers ----------------------------------------------------------------------------------


class CheckpointResponse(Response):
    """A registered checkpoint; `sha256` and `size` are those of the native file.

    `kind` is `training`, or `embeddings` for features of a dataset that an evaluation wrote.  `damaged_at` is the time
    when the service first saw other bytes in the file, and `missing_at` when it first saw the file missing.  Both are
    null for a file that was last seen intact; nothing is made from another one.  `checked_at` is the last time that the
    whole file was read.
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
    created_at: Time
    damaged_at: Time | None
    missing_at: Time | None
    checked_at: Time | None
    links: dict[str, str]


def checkpoint(row: Checkpoint) -> CheckpointResponse:
    here = rooted(f"/v1/checkpoints/{row.id}")
    links = {"self": here, "job": rooted(f"/v1/jobs/{row.job_id}"), "native": f"{here}/download?kind=native"}
    if row.kind == TRAINING:
        links["backbone"] = f"{here}/download?kind=backbone"
    return CheckpointResponse.of(row, links=links)


class SamplesResponse(Response):
    """A picture with images of a dataset: one row for each of the first classes, squares of `side` pixels."""

    png: str
    rows: int
    columns: int
    side: int


class DatasetResponse(Response):
    """A dataset that a worker announced; `counts` are images by split, `class_counts` those of each class.

    `label_lists` are fixed lists of train images that `semi_supervised.lists` may name; `image_size` is the maximum of
    `data.image_size`, where there is one. `report` says what the image folder holds, what was left out of it and what
    is unusual; it is null for a dataset of no image folder. `state` is ready, being_read, refused or absent;
    `read_share` is the share of its files that a worker has read, and `state_message` says more. `digest` is empty
    until a worker has read the files. `note` says what labels would add; it is null for a dataset with two classes.
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
    label_lists: dict[str, dict[str, Any]]
    samples: SamplesResponse | None
    report: DatasetReport | None
    note: str | None
    updated_at: Time


class RefusedDataset(Response):
    """A dataset that a live worker refuses, and why."""

    name: str
    worker: str
    reason: str


def dataset(row: Dataset, sheet: SheetLayout | None, state: DatasetState) -> DatasetResponse:
    address = rooted(f"/v1/datasets/{quote(row.name, safe='')}/samples.png")
    samples = None if sheet is None else SamplesResponse.of(sheet, png=address)
    stated = {"state": state.state, "read_share": state.share, "state_message": state.message}
    more = {"label_lists": row.label_lists or {}, "note": datasets.note(row)}
    return DatasetResponse.of(row, samples=samples, **more, **stated)


class DeviceResponse(Response):
    """A device of a worker: a GPU, a MIG instance, or a stand-in.

    `problem` says why it gets no job; null if it works.  `load` is the share of the last second in which it computed,
    `memory_used` is in bytes, `temperature` in degrees Celsius; null where unknown.  `job_id` is the job that uses it.
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


class WorkerResponse(Response):
    """A worker; `state` is idle, busy, stopped or lost, and `is_live` whether the worker runs.

    `gpus` is the number of its working devices.  `cpu_slots` is the number of jobs without GPUs that it runs at once,
    null for a worker of an older version, and `cpu_job_ids` are those that it runs now.  `job_id` is the job that it
    has run for the longest time.

    `address` is where runs of other workers reach its runs, null while it takes no job of several nodes.
    `disk_free_bytes` is of the fuller of the disks that its runs write to; null before its first heartbeat.

    `pending_datasets` are those that it still reads, `refused_datasets` those that it refuses, with the reasons.
    `version` is the one of the service that it runs, null for a worker of an older version.
    `unable` is the reason why a live worker takes no jobs now, such as storage_unavailable, and `unable_message` is
    the same for people; both are null for a worker that takes jobs.
    """

    id: str
    name: str
    pool: str
    gpus: int
    state: str
    is_live: bool
    job_id: str | None
    devices: list[DeviceResponse]
    cpu_slots: int | None
    address: str | None
    cpu_job_ids: list[str]
    disk_free_bytes: int | None
    datasets: dict[str, str]
    pending_datasets: Annotated[list[str], BeforeValidator(lambda value: value or [])]
    refused_datasets: Annotated[dict[str, str], BeforeValidator(lambda value: value or {})]
    spec_versions: list[str]
    version: str | None
    started_at: Time
    seen_at: Time
    drain_requested_at: Time | None
    cordoned_at: Time | None
    unable: str | None
    unable_message: str | None
