"""The folded list: entries, their pages and order, and the jobs below an entry."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event

from jobs import listing, submission, transitions
from jobs.database import Database, new_id
from jobs.errors import Invalid
from jobs.listing import Entry, Sort
from jobs.queries import Filters
from tests.jobs import rows, sweeping
from wcl_core.protocol import KNN_TOP1


@pytest.fixture(autouse=True)
def _dataset(database: Database) -> None:
    rows.add_dataset(database)


def trained(database: Database, knn: float | None = None, **fields: Any) -> str:
    """Return the id of a running training that has reported a kNN accuracy."""
    job_id = rows.submit(database, **fields)
    run = rows.Run(database, rows.claim(database))
    assert run.job_id == job_id
    run.deliver(rows.started(), *([] if knn is None else [rows.metrics(10, **{KNN_TOP1: knn})]), rows.end("succeeded"))
    return job_id


def pages(database: Database, limit: int, sort: Sort = "", descending: bool = False) -> list[Entry]:
    found, cursor = [], None
    for _ in range(20):
        with database.read() as session:
            part = listing.entries(session, sort, descending, cursor, limit)
        assert len(part.items) <= limit
        found += part.items
        cursor = part.next_cursor
        if cursor is None:
            return found
    raise AssertionError("the pages do not end")


@pytest.mark.parametrize("limit", [1, 2, 3, 10])
def test_trials_seeds_and_evaluations_fold_into_one_entry_each(database: Database, limit: int) -> None:
    group = new_id()
    seeds = [trained(database, 0.4 + seed / 10, spec={"seed": seed}, group_id=group) for seed in (0, 1)]
    alone = trained(database, 0.9)
    measured = rows.submit(database, "evaluate", parent_id=alone)
    again = rows.submit(database, "evaluate", parent_id=measured)  # as a retry of the evaluation
    pixels = rows.submit(database, "evaluate")
    sweep_id = sweeping.submit(database, {sweeping.TEMPERATURE: [0.1, 0.2]})
    newest = rows.submit(database)

    found = pages(database, limit)

    assert [entry.id for entry in found] == [newest, sweep_id, pixels, alone, group]
    assert [member.id for member in found[-1].members] == seeds
    assert [member.knn for member in found[-1].members] == [0.4, 0.5]
    assert (found[3].num_evaluations, found[1].counts.total()) == (2, 2)
    with database.read() as session:
        below = listing.jobs_below(session, [alone, group, sweep_id])
    assert [job.id for job in below[alone]] == [measured, again]
    assert [job.id for job in below[group]] == seeds
    assert {job.sweep_id for job in below[sweep_id]} == {sweep_id}


def test_a_sorted_list_ranks_groups_by_their_mean_and_missing_values_last(database: Database) -> None:
    group = new_id()
    for seed, knn in ((0, 0.4), (1, 0.6)):
        trained(database, knn, name=f"Middle, seed {seed}", spec={"seed": seed}, group_id=group)
    low, high = trained(database, 0.2, name="zebra"), trained(database, 0.8, name="Apple")
    without = trained(database, name="mouse")

    for limit in (1, 3, 10):
        assert [entry.id for entry in pages(database, limit, "knn", True)] == [high, group, low, without]
    assert [entry.id for entry in pages(database, 10, "knn")] == [low, group, high, without]
    assert [entry.id for entry in pages(database, 10, "name")] == [high, group, without, low]
    assert [entry.id for entry in pages(database, 10, "age")] == [without, high, low, group]
    with database.read() as session:
        flat = listing.sorted_jobs(session, Filters(q="seed"), "knn", True, None, 10).items
        with pytest.raises(Invalid):
            listing.entries(session, "knn", True, "x" * 36, 10)
        with pytest.raises(Invalid):
            listing.entries(session, "", False, "5", 10)
    assert [job.name for job in flat] == ["Middle, seed 1", "Middle, seed 0"]


def test_a_retry_stays_in_its_group(database: Database) -> None:
    group = new_id()
    job_id = rows.submit(database, group_id=group)
    database.write(lambda session: transitions.cancel(session, job_id))
    retried = database.write(lambda session: submission.retry(session, job_id, None)).id

    (entry,) = pages(database, 10)

    assert [member.id for member in entry.members] == [job_id, retried]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # PostgreSQL plans by the numbers of rows
def test_a_page_reads_an_index_of_entries_and_not_every_job(database: Database) -> None:
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if "FROM jobs" in statement:
            statements.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    pages(database, 5)
    event.remove(database.engine, "before_cursor_execute", note)
    with database.read() as session:
        cursor = session.connection().connection.cursor()
        plan = cursor.execute(f"EXPLAIN QUERY PLAN {statements[0][0]}", statements[0][1]).fetchall()
    assert any("ix_jobs_listed" in str(step) for step in plan), plan
    assert not any("TEMP B-TREE" in str(step) for step in plan), plan
