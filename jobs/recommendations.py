"""Recipes for a registered dataset, on the devices of a pool."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy.orm import Session

from jobs.checks import pretraining_count
from jobs.datasets import why_unknown
from jobs.errors import FieldError, Invalid, NotFound
from jobs.estimates import estimate, machine_of, slowdown, speeds
from jobs.models import Dataset
from jobs.shared_reads import dataset_named
from wcl_core.config import DataConfig, PretrainSpec
from wcl_core.recommendation import LENGTHS, Content, Images, Length, Recommendation, recommend

_GREY = {"L", "1", "I", "I;16", "LA"}  # modes of Pillow without colours


@dataclass(frozen=True)
class Recipe(Recommendation):
    """A recipe for the workers of a pool.

    Attributes:
        time: that the training is expected to take, as `jobs.estimates.estimate` has it of the spec.
    """

    time: dict[str, Any] = field(default_factory=dict)


def recommended(
    session: Session, name: str, minutes: float | None = None, content: Content = "photos", pool: str = "default"
) -> Recipe:
    """Return a recipe that fits a dataset and the workers of a pool.

    Minutes that were asked for are kept on a busy machine too: the recipe is for the share of it that is free.

    Raises:
        NotFound: there is no such dataset.
        Invalid: it has too few images.
    """
    row = dataset_named(session, name)
    if row is None:
        raise NotFound(why_unknown(session, name))
    try:
        machine = machine_of(session, pool)
        speed = speeds(session, pool, int(machine.is_gpu))
        times = slowdown(session, machine, pool) if minutes else 1.0

        def slowed(spec: PretrainSpec) -> float | None:
            usual = speed(spec)
            return None if usual is None else usual / times

        free = replace(machine, cores=machine.cores / times)
        recipe = recommend(name, _images(row), free, minutes, content, slowed)
    except ValueError as error:
        raise Invalid([FieldError("/name", str(error))]) from error
    time = _time(session, recipe, row, pool, int(machine.is_gpu))
    if busy := time["busy"]:
        counts = (
            "; the recipe counts on that, and takes less time once the machine is idle"
            if minutes and not time["job"]
            else ""
        )
        recipe = replace(recipe, notes=[*recipe.notes, busy + counts])
    return Recipe(**vars(recipe), time=time)


def recommended_lengths(
    session: Session, row: Dataset, content: Content, pool: str = "default"
) -> dict[Length, Recipe]:
    """Return a recipe for each usual length of a training on the workers of a pool, with the time of its dry run.

    Raises:
        Invalid: the dataset has too few images.
    """
    try:
        images, machine = _images(row), machine_of(session, pool)
        speed = speeds(session, pool, int(machine.is_gpu))
        recipes = {length: recommend(row.name, images, machine, None, content, speed, length) for length in LENGTHS}
    except ValueError as error:
        raise Invalid([FieldError("/name", str(error))]) from error
    gpus = int(machine.is_gpu)
    return {
        length: Recipe(**vars(each), time=_time(session, each, row, pool, gpus)) for length, each in recipes.items()
    }


def _time(session: Session, recipe: Recommendation, row: Dataset, pool: str, gpus: int) -> dict[str, Any]:
    """Return the time that a training by a recipe is expected to take, as its dry run has it."""
    spec = PretrainSpec.model_validate(recipe.spec)
    time: dict[str, Any] = estimate(session, spec, pool, gpus, pretraining_count(row, spec.data))["time"]
    return time


def usual_content(row: Dataset) -> Content:
    """Return the kind of images that a dataset most likely has."""
    return "drawings" if (row.kind, row.name) == ("builtin", "digits") else "photos"


def _images(row: Dataset) -> Images:
    report = row.report or {}
    median, modes = report.get("median"), report.get("modes") or {}
    side = row.image_size or (8 if row.name == "digits" else 32)
    return Images(
        pretraining_count(row, DataConfig(name=row.name)),
        (median[0], median[1]) if median else (side, side),
        len(row.classes),
        is_grey=bool(modes) and set(modes) <= _GREY,
        largest=row.image_size,
        unreadable=int(report.get("unreadable", 0)) if row.kind == "folder" else 0,
    )
