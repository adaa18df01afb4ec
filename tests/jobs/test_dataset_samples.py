"""Sample sheets: the newest announcement of a dataset replaces or removes the sheet."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from sqlalchemy import select, update

from jobs import datasets, workers
from jobs.database import Database, new_id
from jobs.datasets import DatasetFacts, SampleSheet, SheetLayout
from jobs.errors import NotFound
from jobs.models import Dataset
from tests.jobs import rows
from tests.jobs.rows import at_once, worker

DIGITS = DatasetFacts("digits", "builtin", rows.DIGEST, {"train": 4, "test": 2}, ["a", "b"])
SHEET = SampleSheet(b"\x89PNG one", rows=2, columns=3, side=8)


def announce(database: Database, *datasets: DatasetFacts) -> None:
    facts = worker(id=new_id(), datasets={dataset.name: dataset.digest for dataset in datasets})
    database.write(lambda session: workers.register(session, facts, 42, datasets))


def test_the_newest_announcement_brings_the_sheet(database: Database) -> None:
    announce(database, replace(DIGITS, sheet=SHEET), replace(DIGITS, name="other"))
    announce(database, replace(DIGITS, sheet=replace(SHEET, png=b"\x89PNG \0 two", columns=5)))

    digest = hashlib.sha256(b"\x89PNG \0 two").hexdigest()
    with database.read() as session:
        assert datasets.sheet_layouts(session) == {"digits": SheetLayout(2, 5, 8, digest)}
        assert datasets.sheet_png(session, "digits") == (b"\x89PNG \0 two", digest)
        with pytest.raises(NotFound, match="other"):
            datasets.sheet_png(session, "other")


def test_an_announcement_without_a_sheet_leaves_none_of_older_images(database: Database) -> None:
    announce(database, replace(DIGITS, sheet=SHEET))
    announce(database, replace(DIGITS, digest="e" * 64))

    with database.read() as session:
        assert datasets.sheet_layouts(session) == {}


def test_workers_that_announce_sheets_at_once_all_register(database: Database) -> None:
    several = [replace(DIGITS, name=f"set-{number}", sheet=SHEET) for number in range(4)]
    at_once(6, lambda _: announce(database, *several))

    with database.read() as session:
        assert list(datasets.sheet_layouts(session)) == [dataset.name for dataset in several]


def test_a_dataset_keeps_the_time_of_its_registration_until_its_images_change(database: Database) -> None:
    announce(database, DIGITS)
    database.write(lambda session: session.execute(update(Dataset).values(updated_at=7)))

    def registered() -> int:
        with database.read() as session:
            return session.execute(select(Dataset.updated_at)).scalar_one()

    announce(database, DIGITS)  # a worker starts again
    assert registered() == 7
    announce(database, replace(DIGITS, digest="e" * 64))
    assert registered() > 7
