"""Archived jobs: lists leave them out unless they are asked for; everything else of them works as before."""

from __future__ import annotations

import pytest

from jobs import audit, listing, queries, submission, transitions
from jobs.database import Database
from jobs.errors import Conflict
from jobs.queries import Archived
from tests.jobs import rows
from tests.jobs.rows import add_dataset, submit


@pytest.fixture(autouse=True)
def dataset(database: Database) -> None:
    add_dataset(database)


def ended(database: Database) -> str:
    job_id = submit(database)
    database.write(lambda session: transitions.cancel(session, job_id))
    return job_id


def listed(database: Database, archived: Archived = "") -> list[str]:
    with database.read() as session:
        return [job.id for job in queries.list_jobs(session, archived=archived).items]


def entries(database: Database) -> list[str]:
    with database.read() as session:
        return [entry.id for entry in listing.entries(session, "", False, None, 50).items]


def test_lists_leave_out_an_archived_job_unless_they_are_asked_for_it(database: Database) -> None:
    job_id, other = ended(database), ended(database)
    for _ in range(2):
        database.write(lambda session: submission.archive(session, job_id))

    assert listed(database) == entries(database) == [other]
    assert listed(database, "only") == [job_id]
    assert listed(database, "all") == [other, job_id]
    assert rows.job(database, job_id).name
    assert audit.audit(database).findings == []

    for _ in range(2):
        database.write(lambda session: submission.unarchive(session, job_id))
    assert listed(database) == entries(database) == [other, job_id]
    assert [event.data for event in rows.events(database, job_id)][-2:] == [{"archived": True}, {"archived": False}]


def test_evaluations_are_archived_with_their_training(database: Database) -> None:
    job_id = ended(database)
    evaluation = submit(database, "evaluate", parent_id=job_id)
    database.write(lambda session: transitions.cancel(session, evaluation))

    database.write(lambda session: submission.archive(session, job_id))
    assert listed(database, "only") == [evaluation, job_id]
    database.write(lambda session: submission.unarchive(session, job_id))
    assert listed(database) == [evaluation, job_id]


def test_a_job_that_has_not_ended_is_not_archived(database: Database) -> None:
    job_id = submit(database)

    with pytest.raises(Conflict, match="queued"):
        database.write(lambda session: submission.archive(session, job_id))


def test_the_next_job_of_a_seed_group_stands_for_it(database: Database) -> None:
    new = [rows.new_job(spec={"seed": seed}) for seed in (0, 1)]
    first, second = (job.id for job in database.write(lambda session: submission.submit_group(session, new)))
    database.write(lambda session: transitions.cancel(session, first))
    database.write(lambda session: submission.archive(session, first))

    with database.read() as session:
        page = listing.entries(session, "", False, None, 50)
    assert [entry.job.id for entry in page.items if entry.job] == [second]
