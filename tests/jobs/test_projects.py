"""Rows of a project: no statement of a session that acts for another project sees or changes one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import aliased

from jobs.database import DEFAULT_PROJECT, Database, new_id
from jobs.models import Base, InProject, Job, OfJob
from tests.jobs import rows


@dataclass(frozen=True)
class Actor:
    """Whom a transaction acts for, as far as the rows that it sees depend on that."""

    project_id: str | None


CLASSES = [each.class_ for each in Base.registry.mappers if issubclass(each.class_, InProject | OfJob)]


@pytest.fixture
def filled(database: Database) -> Database:
    """A database with a job of the default project, and rows of it."""
    rows.add_dataset(database)
    run = rows.Run(database, rows.running(database, tags=("a",)))
    run.deliver(rows.started(), rows.metrics(1, loss=0.5), rows.checkpoint(1), rows.artifact(), rows.evaluation())
    run.deliver(rows.groups(1, [0, 1]), output=[(0, "text")])
    return database


def test_another_project_has_no_rows_also_by_an_alias(filled: Database) -> None:
    own, other, every = (filled.acting_for(Actor(each)) for each in (DEFAULT_PROJECT, new_id(), None))
    full = []
    for model in CLASSES:
        for name in (model, aliased(model)):
            count = select(func.count()).select_from(name)
            numbers = []
            for seen in (every, own, other):
                with seen.read() as session:
                    numbers.append(session.execute(count).scalar_one())
            assert numbers == [numbers[0], numbers[0], 0], (model, name)
            full.append((model, numbers[0] > 0))
    assert sum(has_rows for _, has_rows in full) >= 16, "of 8 classes or more"


def test_another_project_changes_no_rows(filled: Database) -> None:
    other = filled.acting_for(Actor(new_id()))
    before = rows.rows_of(filled, Job)
    other.write(lambda session: session.execute(update(Job).values(name="changed")) and None)
    other.write(lambda session: session.execute(delete(Job)) and None)
    assert rows.rows_of(filled, Job) == before
