"""Recipes for a registered dataset, on the devices of a pool."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import queries
from jobs.checks import pretraining_count
from jobs.devices import of_pool, process_memory
from jobs.errors import FieldError, Invalid
from jobs.estimates import speeds
from jobs.models import Dataset, Worker
from wcl_core.config import DataConfig
from wcl_core.limits import num_cores
from wcl_core.recommendation import LENGTHS, Content, Images, Length, Machine, Recommendation, recommend

_GREY = {"L", "1", "I", "I;16", "LA"}  # modes of Pillow without colours


def recommended(
    session: Session, name: str, minutes: float | None = None, content: Content = "photos", pool: str = "default"
) -> Recommendation:
    """Return a recipe that fits a dataset and the workers of a pool.

    Raises:
        NotFound: there is no such dataset.
        Invalid: it has too few images.
    """
    row = queries.get_dataset(session, name)
    try:
        machine = _machine(session, pool)
        return recommend(name, _images(row), machine, minutes, content, speeds(session, pool, int(machine.is_gpu)))
    except ValueError as error:
        raise Invalid([FieldError("/name", str(error))]) from error


def recommended_lengths(
    session: Session, row: Dataset, content: Content, pool: str = "default"
) -> dict[Length, Recommendation]:
    """Return a recipe for each usual length of a training on the workers of a pool.

    Raises:
        Invalid: the dataset has too few images.
    """
    try:
        images, machine = _images(row), _machine(session, pool)
        speed = speeds(session, pool, int(machine.is_gpu))
        return {length: recommend(row.name, images, machine, None, content, speed, length) for length in LENGTHS}
    except ValueError as error:
        raise Invalid([FieldError("/name", str(error))]) from error


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


def _machine(session: Session, pool: str) -> Machine:
    """Return the machine of a pool; the cores are those of the server, which knows no others."""
    is_gpu = bool(of_pool(session, pool))
    workers = session.execute(select(Worker).where(Worker.pool == pool, Worker.is_live)).scalars()
    memory = max(filter(None, (process_memory(each, int(is_gpu)) for each in workers)), default=None)
    return Machine(is_gpu, memory, num_cores())
