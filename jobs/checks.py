"""Validates a new job against the database; `wcl_core.config` validates the spec itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import access, checkpoints, weights
from jobs.datasets import is_being_read, why_unknown
from jobs.devices import has_devices, is_part, of_pool, process_memory
from jobs.errors import FieldError, Invalid
from jobs.models import TRAINING, Checkpoint, Dataset, Job
from jobs.new_job import NewJob
from jobs.shared_reads import WorkerRow, dataset_named, workers_of_pool
from jobs.status import Status
from wcl_core.config import (
    PROTOCOLS,
    WIDE_K,
    WITHOUT_LABELS,
    BackboneConfig,
    CheckpointFeatures,
    DataConfig,
    EvaluateSpec,
    PretrainSpec,
    ProtocolSettings,
    SemiSupervisedConfig,
    Spec,
    held_out_count,
    is_transformer,
    labels_per_class,
    largest_k,
)

_Settings = TypeVar("_Settings", bound=ProtocolSettings)


def check(session: Session, new: NewJob) -> tuple[NewJob, Dataset]:
    """Validate a new job, and return it `completed` and with its dataset.

    Raises:
        Invalid: all invalid fields, each with its pointer.
    """
    errors = check_priority(session, new.priority)
    new = completed(session, new, errors)
    dataset = _dataset(session, new.spec.data, "/spec/data", errors)
    if isinstance(new.spec, PretrainSpec):
        errors += _check_pretrain(session, new.spec, dataset) + _check_workers(session, new, new.spec)
        errors += _check_weights(session, new.spec)
    elif dataset is not None:
        errors += _check_protocols(new.spec, dataset, new.spec.data, "/spec") + _check_features(session, new.spec)
    errors += _check_devices(session, new) + _check_after(session, new)
    if errors:
        raise Invalid(errors)
    assert dataset is not None
    return new, dataset


def check_priority(session: Session, priority: int) -> list[FieldError]:
    """Return the error of a priority that the transaction's key may not set."""
    if priority <= 0 or access.may_prioritise(session):
        return []
    return [FieldError("/priority", "expected at most 0; a higher one needs a key with the scope `priority`")]


def completed(session: Session, new: NewJob, errors: list[FieldError]) -> NewJob:
    """Return a job with what the client left out; an error is added where that is not possible.

    Settings of evaluations fit the smallest class, a job needs one GPU where its pool has any, and a training has a
    process for each GPU.
    """
    new = replace(new, spec=_fitted(session, new.spec), gpus=default_gpus(session, new))
    return replace(new, spec=_with_processes(new.spec, new.gpus or 0, errors))


def _fitted(session: Session, spec: Spec) -> Spec:
    """Return the spec with settings of its evaluations that fit their datasets, where none were set."""
    if isinstance(spec, EvaluateSpec):
        return _fitted_settings(session, spec, spec.data)
    plans = tuple(_fitted_settings(session, plan, plan.data or spec.data) for plan in spec.evaluations)
    return spec.model_copy(update={"evaluations": plans}) if plans != spec.evaluations else spec


def _fitted_settings(session: Session, settings: _Settings, data: DataConfig) -> _Settings:
    dataset = dataset_named(session, data.name)
    if dataset is None:
        return settings
    smallest, _ = _smallest_class(dataset, data.held_out_share)
    images = (1 - data.held_out_share) * dataset.counts["train"]
    return settings.fitted(int(smallest), images, len(dataset.classes))


def pretraining_count(dataset: Dataset, data: DataConfig) -> int:
    """Return the number of training images: those of the unlabelled split, else of train; without held-out images."""
    if "unlabelled" in dataset.counts:
        count = int(dataset.counts["unlabelled"])
        return count if _has_labels(dataset) else _left(count, data.held_out_share)
    counts = (dataset.class_counts or {}).get("train") or [dataset.counts["train"]]
    return sum(_left(count, data.held_out_share) for count in counts)


def _left(count: int, held_out_share: float) -> int:
    """Return the train images of a class that are not held out."""
    return count - held_out_count(count, held_out_share)


def _dataset(session: Session, data: DataConfig, pointer: str, errors: list[FieldError]) -> Dataset | None:
    dataset = dataset_named(session, data.name)
    if dataset is not None and not dataset.digest and not is_being_read(session, data.name):
        dataset = None  # its names are known, but no worker could read it
    if dataset is not None and data.held_out_share and dataset.kind == "packed":
        detail = f"{dataset.name} is packed, and only images in memory can be held out; 0 keeps its own test split"
        errors.append(FieldError(f"{pointer}/held_out_share", detail))
    if dataset is not None and (unreadable := _unreadable(dataset, data.max_corrupt_share)):
        errors.append(FieldError(f"{pointer}/max_corrupt_share", unreadable))
    if dataset is None:
        errors.append(FieldError(f"{pointer}/name", why_unknown(session, data.name)))
    elif dataset.image_size is not None and data.image_size > dataset.image_size:
        detail = f"{data.image_size} is more than the {dataset.image_size} pixels that {dataset.name} is packed at"
        detail += f"; use at most {dataset.image_size}"
        errors.append(FieldError(f"{pointer}/image_size", detail))
    return dataset


def _unreadable(dataset: Dataset, largest_share: float) -> str | None:
    """Return an error if more image files of a folder cannot be read than the job tolerates."""
    count = int((dataset.report or {}).get("unreadable", 0)) if dataset.kind == "folder" else 0
    total = count + sum(dataset.counts.values())
    if count <= largest_share * total:
        return None
    return (
        f"{count} of {total} image files of {dataset.name} cannot be read, more than {largest_share:g} of them; remove "
        f"the files, or use at least {math.ceil(1000 * count / total) / 1000:g}"
    )


def _check_pretrain(session: Session, spec: PretrainSpec, dataset: Dataset | None) -> list[FieldError]:
    errors: list[FieldError] = []
    if dataset is not None and spec.images_per_step > (images := pretraining_count(dataset, spec.data)):
        detail = (
            f"{spec.images_per_step} is more than the {images} train images of {dataset.name}; use at most {images}"
        )
        errors.append(FieldError("/spec/batch_size", detail))
    for place, plan in enumerate(spec.evaluations):
        pointer = f"/spec/evaluations/{place}"
        measured = _dataset(session, plan.data, f"{pointer}/data", errors) if plan.data else dataset
        if measured is not None:
            errors += _check_protocols(plan, measured, plan.data or spec.data, pointer)
    return errors


def default_gpus(session: Session, new: NewJob) -> int:
    """Return the GPUs of a job: those requested, none on the CPU, else one for each process where its pool has any."""
    if new.gpus is not None:
        return new.gpus
    count = new.spec.processes if isinstance(new.spec, PretrainSpec) else 1
    if new.spec.device == "auto":
        return count if has_devices(session, new.pool) else 0
    return count if new.spec.device == "cuda" else 0


def _with_processes(spec: Spec, gpus: int, errors: list[FieldError]) -> Spec:
    """Return a training with a process for each GPU, unless it states their number."""
    if not isinstance(spec, PretrainSpec) or gpus < 2 or "processes" in spec.model_fields_set:
        return spec
    try:
        stated = spec.model_dump(exclude_unset=True) | {"processes": gpus}
        return type(spec).model_validate(stated)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        errors.append(FieldError("/spec/processes", f"a job with {gpus} GPUs has a process for each; {reason}"))
        return spec


def _check_devices(session: Session, new: NewJob) -> list[FieldError]:
    """Return an error where `gpus`, `spec.processes` and `spec.device` contradict each other or the pool's GPUs."""
    gpus, device = new.gpus or 0, new.spec.device
    if device == "cpu" and gpus:
        detail = f"gpus is {gpus}, but spec.device is cpu; leave gpus out, or set spec.device to cuda"
        return [FieldError("/gpus", detail)]
    if device == "cuda" and not gpus:
        return [FieldError("/gpus", "gpus is 0, but spec.device is cuda; leave gpus out, or set spec.device to cpu")]
    if isinstance(new.spec, PretrainSpec) and gpus and new.spec.processes > gpus:
        detail = f"processes is {new.spec.processes}, but gpus is {gpus}, and each process needs a GPU; use at most "
        detail += f"{gpus}, set gpus to {new.spec.processes}, or leave gpus out and set spec.device to cpu"
        return [FieldError("/spec/processes", detail)]
    devices = of_pool(session, new.pool) if gpus > 1 else ()
    if devices and all(is_part(device.uuid) for device in devices):
        detail = f"gpus is {gpus}, but the GPUs of the pool {new.pool} are MIG instances, of which CUDA lets a job use "
        return [FieldError("/gpus", detail + "one; use 1")]
    return []


def _check_workers(session: Session, new: NewJob, spec: PretrainSpec) -> list[FieldError]:
    """Return an error for what no live worker of the pool with enough GPUs can do."""
    workers = [each for each in workers_of_pool(session, new.pool) if each.gpus >= (new.gpus or 0)]
    return _check_memory(workers, new, spec) + _check_compiler(workers, spec)


def _check_memory(workers: Sequence[WorkerRow], new: NewJob, spec: PretrainSpec) -> list[FieldError]:
    """Return an error if the views of one step alone need more memory than any of the workers has."""
    shares = list(filter(None, (process_memory(each, new.gpus or 0, spec.processes) for each in workers)))
    if not shares or spec.view_bytes <= max(shares):
        return []
    name = "multi_crop/crops" if spec.multi_crop.crops else "batch_size"
    needed, most = (f"{size / 2**30:.1f} GiB" for size in (spec.view_bytes, max(shares)))
    detail = f"the views of a step take {needed} in each process, but the workers of this pool have at most {most}"
    if not spec.multi_crop.crops:
        detail += f"; use at most {int(spec.images_per_step * max(shares) / spec.view_bytes)}"
    return [FieldError(f"/spec/{name}", detail)]


def _check_compiler(workers: Sequence[WorkerRow], spec: PretrainSpec) -> list[FieldError]:
    """Return an error if compiled steps are asked for, and every worker has said that it cannot compile."""
    if spec.execution != "compiled" or not workers or any(each.has_compiler is not False for each in workers):
        return []
    detail = (
        "execution is compiled, but no worker of this pool has a compiler; use auto or eager, or install a C and C++ "
    )
    return [FieldError("/spec/execution", detail + "compiler and Python's headers there and start the worker again")]


def _check_protocols(settings: ProtocolSettings, dataset: Dataset, data: DataConfig, pointer: str) -> list[FieldError]:
    protocols = settings.protocols
    if not _has_labels(dataset):
        return [
            FieldError(f"{pointer}/protocols/{place}", WITHOUT_LABELS.format(name=dataset.name))
            for place, protocol in enumerate(protocols)
            if PROTOCOLS[protocol].measures
        ]
    errors = []
    smallest, of_classes = _smallest_class(dataset, data.held_out_share)
    if "knn" in protocols and settings.knn_k > largest_k(int(smallest)):
        errors.append(FieldError(f"{pointer}/knn_k", f"{settings.knn_k} is above half {of_classes}"))
    if "knn_wide" in protocols and largest_k(int(smallest)) < WIDE_K:
        here = f"{pointer}/protocols/{protocols.index('knn_wide')}"
        errors.append(FieldError(here, f"knn_wide has k = {WIDE_K}, which is above half {of_classes}"))
    for place, count in enumerate(settings.labels_per_class):
        if "few_labels" in protocols and count > smallest:
            errors.append(FieldError(f"{pointer}/labels_per_class/{place}", f"{count} is more than {of_classes}"))
    if "semi_supervised" in protocols:
        tuned = settings.semi_supervised
        errors += _check_semi_supervised(tuned, dataset, data.held_out_share, f"{pointer}/semi_supervised")
    return errors


def _has_labels(dataset: Dataset) -> bool:
    return len(dataset.classes) > 1


def _smallest_class(dataset: Dataset, held_out_share: float) -> tuple[float, str]:
    """Return the size of the smallest class of train, and its name; the mean size if no worker has counted them."""
    if class_counts := (dataset.class_counts or {}).get("train"):
        counts = [_left(count, held_out_share) for count in class_counts]
        smallest = min(counts)
        name = dataset.classes[counts.index(smallest)]
        return smallest, f"the {smallest} train images of {name}, the smallest class of {dataset.name}"
    mean = (1 - held_out_share) * dataset.counts["train"] / max(1, len(dataset.classes))
    return mean, f"the images per class of {dataset.name}, {mean:g} on average"


def _check_semi_supervised(
    config: SemiSupervisedConfig, dataset: Dataset, held_out_share: float, pointer: str
) -> list[FieldError]:
    errors = []
    smallest, of_classes = _smallest_class(dataset, held_out_share)
    for place, share in enumerate(config.shares):
        images = (1 - held_out_share) * dataset.counts["train"]
        per_class = labels_per_class(share, images, len(dataset.classes))
        if per_class > smallest:
            detail = f"{share:g} of the labels is {per_class} a class, more than {of_classes}"
            errors.append(FieldError(f"{pointer}/shares/{place}", detail))
    lists = dataset.label_lists or {}
    for place, name in enumerate(config.lists):
        if name not in lists:
            expected = f"registered are: {', '.join(sorted(lists))}" if lists else "no worker has registered one"
            detail = f"there is no list {name!r} of {dataset.name}; {expected}"
            errors.append(FieldError(f"{pointer}/lists/{place}", detail))
    return errors


def _check_features(session: Session, spec: EvaluateSpec) -> list[FieldError]:
    if not isinstance(spec.features, CheckpointFeatures):
        return []
    checkpoint = session.get(Checkpoint, str(spec.features.checkpoint_id))
    pointer = "/spec/features/checkpoint_id"
    if checkpoint is None or checkpoint.deleted_at is not None:
        return [FieldError(pointer, f"there is no checkpoint {spec.features.checkpoint_id}")]
    if checkpoint.flaw is not None:
        return [FieldError(pointer, f"the file of checkpoint {checkpoint.id} is {checkpoint.flaw}")]
    if checkpoint.kind != TRAINING:
        return [FieldError(pointer, f"{checkpoint.id} holds {checkpoint.kind}, not a network")]
    return []


def _check_weights(session: Session, spec: PretrainSpec) -> list[FieldError]:
    """Return an error if there are no such weights, or they are of another network than the spec's."""
    if spec.weights is None:
        return []
    if (source := weights.source(session, spec.weights)) is None:
        names = ", ".join(f"{row.name} ({row.sha256[:12]}…)" for row in weights.every(session)[:20])
        detail = f"there are no weights and no full checkpoint with this digest; imported are: {names or 'none'}"
        return [FieldError("/spec/weights", detail)]
    held = BackboneConfig.model_validate(source.backbone)
    size = "" if not is_transformer(held.name) else f" and data.image_size = {source.image_size}"
    if held == spec.backbone and (not size or source.image_size == spec.data.image_size):
        return []
    fields = held.model_dump(mode="json", exclude_defaults=True)
    return [FieldError("/spec/backbone", f"the weights ({source.name}) are of another network; use {fields}{size}")]


def _check_after(session: Session, new: NewJob) -> list[FieldError]:
    errors = []
    for place, other in enumerate(new.after):
        status = session.execute(select(Job.status).where(Job.id == other)).scalar_one_or_none()
        if status is None:
            errors.append(FieldError(f"/after/{place}", f"there is no job {other!r}"))
        elif status in (Status.FAILED, Status.CANCELLED):
            if other not in new.after_checkpoint:
                errors.append(FieldError(f"/after/{place}", f"job {other} has {status} and will never succeed"))
            elif checkpoints.newest(session, other) is None:
                errors.append(FieldError(f"/after/{place}", f"job {other} has {status} without a checkpoint"))
    return errors
