"""Pinning and deleting exclude each other at any time.  PostgreSQL only, because SQLite's writers take turns."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from jobs import checkpoints
from jobs.database import Database
from jobs.errors import NotFound
from jobs.models import Checkpoint, Job
from tests.jobs import rows
from tests.jobs.rows import Run, running
from tests.jobs.test_checkpoints import id_of, keeping, kept, saved


@pytest.fixture
def database(postgres_database: Database) -> Database:
    rows.add_dataset(postgres_database)
    return postgres_database


def test_retention_skips_a_checkpoint_that_is_being_pinned(database: Database) -> None:
    run = Run(database, running(database, spec=keeping(keep_last=1)))
    run.deliver(rows.started(), saved(1))
    with Session(database.engine) as other:
        checkpoints.pin(other, id_of(database, run.job_id, 1), True)  # not committed yet
        run.deliver(saved(2))
        other.commit()

    assert kept(database, run.job_id) == [1, 2]


def test_a_checkpoint_pinned_during_retention_stays(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = checkpoints._surplus
    run = Run(database, running(database, spec=keeping(keep_last=1)))
    run.deliver(rows.started(), saved(1))
    first = id_of(database, run.job_id, 1)

    def list_and_pin(*arguments: Any) -> list[Checkpoint]:
        surplus = listed(*arguments)
        database.write(lambda session: checkpoints.pin(session, first, True))
        return surplus

    monkeypatch.setattr(checkpoints, "_surplus", list_and_pin)
    run.deliver(saved(2))

    assert kept(database, run.job_id) == [1, 2]


@pytest.mark.parametrize("by", ["retention", "a user"])
def test_a_checkpoint_that_is_being_deleted_cannot_be_pinned(database: Database, by: str) -> None:
    """The pin waits for the deletion and then fails."""
    run = Run(database, running(database))
    run.deliver(rows.started(), saved(1), saved(2))
    run.end("succeeded")
    first = id_of(database, run.job_id, 1)
    if by == "retention":
        keep = update(Job).values(spec=rows.job(database, run.job_id).spec | {"checkpoints": {"keep_last": 1}})
        database.write(lambda session: session.execute(keep) and None)

    def pin() -> None:
        database.write(lambda session: checkpoints.pin(session, first, True))

    with Session(database.engine) as other:
        if by == "retention":
            checkpoints.expire(other, run.job_id)
        else:
            checkpoints.delete(other, first)
        with rows.in_background(pin) as pinned:
            rows.until_a_statement_waits_for_a_lock(database, pinned)
            other.commit()
            with pytest.raises(NotFound):
                pinned.result()

    assert [row.pinned for row in rows.checkpoints(database, run.job_id)] == [False, False]
    assert kept(database, run.job_id) == [2]
