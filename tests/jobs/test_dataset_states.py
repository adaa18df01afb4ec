"""Datasets that are listed and not read: jobs on them are accepted and wait, and pin the version that is then read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import select

from jobs import dataset_sources, datasets, waiting, workers
from jobs.database import Database
from jobs.datasets import DatasetFacts, DatasetState, State
from jobs.eligibility import WorkerFacts
from jobs.errors import Conflict, Invalid, NotFound
from jobs.models import Dataset, Job, Worker
from jobs.waiting import Cause, Waiting
from tests.jobs import rows
from tests.jobs.rows import WORKER, submit, try_claim, worker

SPEC = {"data": {"name": "photos", "image_size": 8}, "batch_size": 8, "warmup_epochs": 0, "epochs": 2}
FACTS = DatasetFacts("photos", "folder", "1" * 64, {"train": 90, "test": 10}, ["a", "b"])
CHANGED = replace(FACTS, digest="2" * 64)
LISTED = {"counts": {"train": 91, "test": 10}, "classes": ["a", "b"], "class_counts": {"train": [45, 46]}}


@pytest.fixture
def reading(database: Database) -> Database:
    """Return a database with a worker that has listed the folder and now reads it."""
    database.write(lambda session: workers.register(session, worker(datasets={}), 1, [], pending=["photos"]))
    database.write(lambda session: datasets.list_names(session, "photos", "folder", LISTED))
    database.write(lambda session: workers.note_share(session, WORKER.id, "photos", 0.43))
    return database


def settle(database: Database, result: DatasetFacts | str) -> None:
    database.write(lambda session: workers.settle_dataset(session, WORKER.id, "photos", result))


def state(database: Database) -> DatasetState:
    with database.read() as session:
        return datasets.states(session)["photos"]


def explain(database: Database, job_id: str) -> Waiting:
    with database.read() as session:
        result = waiting.explain(session, session.get_one(Job, job_id))
    assert result is not None
    return result


def test_a_job_on_a_dataset_that_is_being_read_waits_and_pins_the_version_that_is_read(reading: Database) -> None:
    early = submit(reading, spec=SPEC)
    assert (state(reading).state, state(reading).share) == (State.BEING_READ, 0.43)
    assert explain(reading, early).cause is Cause.DATASET_BEING_READ
    expected = "the dataset photos is being read: 43%; jobs on other datasets may start before it"
    assert explain(reading, early).message == expected
    assert try_claim(reading, worker(datasets={"photos": FACTS.digest})) is None

    settle(reading, FACTS)

    assert state(reading) == DatasetState(State.READY)
    claim = try_claim(reading, worker(datasets={"photos": FACTS.digest}))
    assert claim is not None
    assert (claim.job_id, claim.dataset_digest) == (early, FACTS.digest)
    with reading.read() as session:
        assert session.execute(select(Dataset.counts)).scalar_one() == FACTS.counts


def test_a_listing_replaces_no_version_that_was_read(reading: Database) -> None:
    settle(reading, FACTS)
    reading.write(lambda session: datasets.list_names(session, "photos", "folder", LISTED))
    with reading.read() as session:
        assert session.execute(select(Dataset.digest, Dataset.counts)).one() == (FACTS.digest, FACTS.counts)


def test_a_job_keeps_its_version_when_the_folder_changes_and_new_jobs_pin_the_new_one(reading: Database) -> None:
    settle(reading, FACTS)
    old = submit(reading, spec=SPEC)
    reading.write(lambda session: workers.begin_dataset(session, WORKER.id, "photos"))
    between = submit(reading, spec=SPEC)
    assert state(reading).state is State.BEING_READ
    assert explain(reading, old).cause is Cause.DATASET_BEING_READ

    settle(reading, CHANGED)
    new = submit(reading, spec=SPEC)

    assert [rows.job(reading, each).dataset_digest[:1] for each in (old, between, new)] == ["1", "2", "2"]
    assert explain(reading, old).cause is Cause.DATASET_ABSENT
    assert "restore its files, or clone the job, which then uses the new version" in explain(reading, old).message


def test_a_dataset_that_is_refused_after_its_listing_takes_no_jobs(reading: Database) -> None:
    early = submit(reading, spec=SPEC)
    settle(reading, "no image can be read")

    assert state(reading) == DatasetState(State.REFUSED, message="worker worker refuses it: no image can be read")
    assert "no image can be read" in explain(reading, early).message
    with pytest.raises(Invalid, match="no image can be read"):
        submit(reading, spec=SPEC)


def test_a_user_has_a_folder_read_again(reading: Database) -> None:
    settle(reading, FACTS)
    rows.add_dataset(reading)
    reading.write(lambda session: datasets.read_again(session, "photos").id)
    reading.write(lambda session: datasets.read_again(session, "photos").id)
    with reading.read() as session:
        assert dataset_sources.requests(session)[1] == {"photos": 2}
    with pytest.raises(Conflict, match="only folders"):
        reading.write(lambda session: datasets.read_again(session, "digits").id)
    with pytest.raises(NotFound):
        reading.write(lambda session: datasets.read_again(session, "none").id)


def test_a_worker_runs_jobs_on_an_earlier_version_that_is_in_its_cache(reading: Database) -> None:
    settle(reading, FACTS)
    other, old = submit(reading, spec=SPEC), submit(reading, spec=SPEC)
    settle(reading, CHANGED)
    reading.write(lambda session: workers.note_cached_jobs(session, WORKER.id, [other]))

    assert explain(reading, old).cause is Cause.DATASET_ABSENT
    assert explain(reading, other).cause is Cause.ABOUT_TO_START
    with reading.read() as session:
        facts = WorkerFacts.of(session.get_one(Worker, WORKER.id))
    claim = try_claim(reading, facts)
    assert claim is not None
    assert (claim.job_id, claim.dataset_digest) == (other, FACTS.digest)
    assert try_claim(reading, facts) is None
