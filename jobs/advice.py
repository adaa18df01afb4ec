"""Warnings about a training that is valid and will hardly learn: few steps, few steps an epoch, a far too high rate."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pydantic import ValidationError
from sqlalchemy.orm import Session

from jobs.checks import pretraining_count
from jobs.estimates import steps_per_epoch
from jobs.models import Job
from jobs.shared_reads import dataset_named
from wcl_core.config import PretrainSpec, parse_spec
from wcl_core.presets import presets
from wcl_core.recommendation import MIN_STEPS, SMALLEST_BATCH, few_steps
from wcl_core.text import counted

_MIN_STEPS_PER_EPOCH = 3  # with fewer, each epoch has almost the same batches
# Base rates of the recipes by optimiser and scaling: `wcl_core.presets`, and usual ones of AdamW.
_RATES = {("sgd", "linear"): 0.12, ("lars", "sqrt"): 0.075, ("lars", "linear"): 0.3, ("adamw", "linear"): 5e-4}
_FAR = 5.0  # times the rate of the recipe


def advice(spec: PretrainSpec, images: int, preset: str | None, *, is_trained: bool = False) -> list[str]:
    """Return the warnings as sentences with the field to change.

    Args:
        images: training images.
        preset: the name of the preset that the job started from.
        is_trained: whether the training has succeeded, so that it can go on.
    """
    return [*_of_steps(spec, images, preset, is_trained), *_of_rate(spec, preset)]


def further_epochs(spec: PretrainSpec, images: int, preset: str | None) -> int:
    """Return the epochs to continue a training for: those that it lacks to learn much, else as many as it has had."""
    steps = steps_per_epoch(spec, images)
    is_short = steps and steps * spec.epochs < MIN_STEPS and not _is_of_its_preset(spec, preset)
    return math.ceil(MIN_STEPS / steps) - spec.epochs if steps and is_short else spec.epochs


def further_epochs_of(session: Session, job: Job) -> int:
    """Return the epochs to continue a training for, as `further_epochs`; 0 for an evaluation."""
    read = _training(session, job)
    return int(job.spec.get("epochs", 0)) if read is None else further_epochs(*read, job.preset)


def _training(session: Session, job: Job) -> tuple[PretrainSpec, int] | None:
    """Return the spec of a training and its number of images; None where the dataset or a plugin is gone."""
    dataset = dataset_named(session, job.dataset_name)
    if job.kind != "pretrain" or dataset is None:
        return None
    try:
        spec = parse_spec("pretrain", job.spec)
    except ValidationError:  # a plugin of the spec is installed no more
        return None
    assert isinstance(spec, PretrainSpec)
    return spec, pretraining_count(dataset, spec.data)


def advice_of(session: Session, job: Job) -> list[str]:
    """Return the warnings about the spec of a job; none for an evaluation."""
    read = _training(session, job)
    return [] if read is None else advice(*read, job.preset, is_trained=job.status == "succeeded")


def _of_steps(spec: PretrainSpec, images: int, preset: str | None, is_trained: bool) -> Iterator[str]:
    steps = steps_per_epoch(spec, images)
    if not steps or not isinstance(spec.batch_size, int):  # a run that has yet to find its batch
        return
    fitting = max(2, images // 8 // spec.num_ranks * spec.num_ranks)
    is_too_large = steps == 1 or (steps < _MIN_STEPS_PER_EPOCH and spec.batch_size > SMALLEST_BATCH)
    if is_too_large:
        epoch = "one step with the same images" if steps == 1 else f"only {steps} steps with almost the same images"
        yield (
            f"batch_size is {spec.batch_size} of {images} train images, so an epoch is {epoch} each time; use about "
            f"{fitting}"
        )
    total = steps * spec.epochs
    if total >= MIN_STEPS or _is_of_its_preset(spec, preset):
        return
    smaller = ""
    if is_too_large:
        smaller = f"batch_size = {fitting} with epochs = {math.ceil(MIN_STEPS / (images // fitting))}, or "
    warning = few_steps(steps, spec.epochs, smaller)
    if is_trained:  # what it has learned is measured
        more = counted(further_epochs(spec, images, preset), "more epoch")
        use = f"continue it for {more}, to at least {MIN_STEPS:,} steps"
        warning = f"{counted(total, 'step')} in all, which is little; {warning.partition('; ')[2] if smaller else use}"
    yield warning


def _is_of_its_preset(spec: PretrainSpec, preset: str | None) -> bool:
    """Return whether a run is as long as its preset on the preset's dataset, whose result is known."""
    recipe = presets().get(preset or "")
    if recipe is None or recipe.data.name != spec.data.name:
        return False
    return spec.epochs >= recipe.epochs and spec.images_per_step <= recipe.images_per_step


def _of_rate(spec: PretrainSpec, preset: str | None) -> Iterator[str]:
    recipe, own = presets().get(preset or ""), spec.optimizer
    expected = _RATES.get((own.name, own.scaling))
    if recipe and (recipe.optimizer.name, recipe.optimizer.scaling) == (own.name, own.scaling):
        expected = recipe.optimizer.learning_rate
    if expected and own.learning_rate > _FAR * expected:
        yield (
            f"optimizer.learning_rate is {own.learning_rate:g}, {own.learning_rate / expected:.0f} times that of the "
            f"recipe, and the loss may diverge; use about {expected:g}"
        )
