"""Sample sheets: a picture of some images of each class of a dataset, made and announced by a worker.

They lie in a table of their own, so that whoever lists datasets never reads a picture.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jobs.errors import NotFound
from jobs.ingest import insert
from jobs.models import DatasetSamples


@dataclass(frozen=True)
class Sheet:
    """One row a class, in label order; a class with fewer images leaves its last cells empty.

    Attributes:
        png: the picture, of `rows` times `columns` squares of `side` pixels.
    """

    png: bytes
    rows: int
    columns: int
    side: int


@dataclass(frozen=True)
class Layout:
    """A sheet without its picture; `sha256` is the picture's."""

    rows: int
    columns: int
    side: int
    sha256: str


def keep(session: Session, name: str, sheet: Sheet | None) -> None:
    """The sheet of a dataset's newest announcement takes the place of the one before, also when there is none."""
    if sheet is None:
        session.execute(delete(DatasetSamples).where(DatasetSamples.dataset_name == name))
        return
    values = vars(sheet) | {"sha256": hashlib.sha256(sheet.png).hexdigest()}
    statement = insert(session, DatasetSamples).values(dataset_name=name, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["dataset_name"], set_=values))


def layouts(session: Session) -> dict[str, Layout]:
    """Of every dataset that has a sheet, by name."""
    facts = (DatasetSamples.rows, DatasetSamples.columns, DatasetSamples.side, DatasetSamples.sha256)
    found = session.execute(select(DatasetSamples.dataset_name, *facts))
    return {row[0]: Layout(*row[1:]) for row in found}


def picture(session: Session, name: str) -> tuple[bytes, str]:
    """A dataset's sheet as PNG, and its sha256.

    Raises:
        NotFound: there is no such dataset, or nobody announced a sheet of it.
    """
    found = session.get(DatasetSamples, name)
    if found is None:
        raise NotFound(f"there are no samples of a dataset {name}")
    return found.png, found.sha256
