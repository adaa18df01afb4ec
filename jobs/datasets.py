"""Datasets as workers announce them, and their sample sheets: pictures of some images of each class.

A sheet has a table of its own, so that lists of datasets never read a picture.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jobs.database import new_id, now_ms
from jobs.errors import NotFound
from jobs.ingest import insert
from jobs.models import Dataset, DatasetSamples, Worker


@dataclass(frozen=True)
class SampleSheet:
    """One row a class, in label order; a class with fewer images leaves its last cells empty.

    Attributes:
        png: the picture, of `rows` times `columns` squares of `side` pixels.
        rows: number of classes shown.
        columns: images of each class, at most.
        side: of one image, in pixels.
    """

    png: bytes
    rows: int
    columns: int
    side: int


@dataclass(frozen=True)
class SheetLayout:
    """A sample sheet without its picture; `sha256` is the picture's digest."""

    rows: int
    columns: int
    side: int
    sha256: str


@dataclass(frozen=True)
class DatasetFacts:
    """A dataset as a worker announces it.

    Attributes:
        name: the registered name.
        kind: builtin, folder or packed.
        digest: of the content, 64 hex digits.
        counts: images by split.
        classes: names in label order.
        class_counts: images of each class in label order, by split.
        label_lists: fixed lists of train images by name, each with its digest and its number of images.
        image_size: side of the stored images, which views cannot exceed; None where any size is possible.
        sheet: some images of each class as a picture.
        report: a `wcl_core.protocol.DatasetReport`; None for a dataset of no image folder.
    """

    name: str
    kind: str
    digest: str
    counts: dict[str, int]
    classes: list[str]
    class_counts: dict[str, list[int]] = field(default_factory=dict)
    label_lists: dict[str, dict[str, Any]] = field(default_factory=dict)
    image_size: int | None = None
    sheet: SampleSheet | None = None
    report: dict[str, Any] | None = None


def announce(session: Session, facts: DatasetFacts) -> None:
    """Store a dataset and its sheet; the newest announcement of a name is the version that new jobs pin."""
    values = {name: value for name, value in vars(facts).items() if name not in ("name", "sheet")}
    statement = insert(session, Dataset).values(id=new_id(), name=facts.name, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values | {"updated_at": now_ms()}))
    _store_sheet(session, facts.name, facts.sheet)


class Refusal(NamedTuple):
    """A dataset that a live worker refuses, and why."""

    name: str
    worker: str
    reason: str


@dataclass(frozen=True)
class Unsettled:
    """The datasets that live workers still read, and those that they refuse, by name."""

    pending: list[str]
    refused: list[Refusal]


def unsettled(session: Session) -> Unsettled:
    """Return the datasets that live workers have named and not announced."""
    workers = session.execute(select(Worker).where(Worker.is_live).order_by(Worker.id)).scalars().all()
    return Unsettled(
        sorted({name for worker in workers for name in worker.pending_datasets or ()}),
        sorted(
            Refusal(name, worker.name, reason)
            for worker in workers
            for name, reason in (worker.refused_datasets or {}).items()
        ),
    )


def why_absent(session: Session, name: str) -> str | None:
    """Return, as a clause, why no worker has a dataset: a live one still reads it, or refuses it; None if none does."""
    datasets = unsettled(session)
    if name in datasets.pending:
        return "a worker is still reading it; try again in a moment"
    refusal = next((each for each in datasets.refused if each.name == name), None)
    return refusal and f"worker {refusal.worker} refuses it: {refusal.reason}"


def _store_sheet(session: Session, name: str, sheet: SampleSheet | None) -> None:
    """Replace the dataset's sheet, or remove it when the newest announcement has none."""
    if sheet is None:
        session.execute(delete(DatasetSamples).where(DatasetSamples.dataset_name == name))
        return
    values = vars(sheet) | {"sha256": hashlib.sha256(sheet.png).hexdigest()}
    statement = insert(session, DatasetSamples).values(dataset_name=name, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["dataset_name"], set_=values))


def sheet_layouts(session: Session) -> dict[str, SheetLayout]:
    """Return the layout of every sample sheet by its dataset's name."""
    columns = (DatasetSamples.rows, DatasetSamples.columns, DatasetSamples.side, DatasetSamples.sha256)
    rows = session.execute(select(DatasetSamples.dataset_name, *columns))
    return {row[0]: SheetLayout(*row[1:]) for row in rows}


def sheet_png(session: Session, name: str) -> tuple[bytes, str]:
    """Return a dataset's sample sheet as PNG, and its sha256.

    Raises:
        NotFound: there is no such dataset, or no worker announced a sheet of it.
    """
    samples = session.get(DatasetSamples, name)
    if samples is None:
        raise NotFound(f"there are no samples of a dataset {name}")
    return samples.png, samples.sha256
