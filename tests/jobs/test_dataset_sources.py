"""Datasets that administrators add, rename and remove while the service runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from jobs import dataset_sources, datasets, submission, transitions, workers
from jobs.database import Database
from jobs.dataset_sources import Added
from jobs.datasets import DatasetFacts, SampleSheet
from jobs.errors import Conflict, Invalid, JobsError, NotFound
from jobs.models import Dataset, DatasetSamples, Worker
from tests.jobs import rows
from tests.jobs.rows import WORKER, submit, worker

FACTS = DatasetFacts("photos", "folder", "1" * 64, {"train": 900, "test": 10}, ["a", "b"])
SPEC = {"data": {"name": "photos", "image_size": 8}}


def add(database: Database, name: str = "photos", path: str = "/data/photos") -> Added:
    return database.write(lambda session: dataset_sources.add(session, name, path, True, None))


def announced(database: Database, name: str = "photos") -> None:
    facts = DatasetFacts(**{**vars(FACTS), "name": name, "sheet": SampleSheet(b"png", 1, 1, 8)})
    database.write(lambda session: workers.register(session, worker(datasets={}), 1, [], pending=[name]))
    database.write(lambda session: workers.settle_dataset(session, WORKER.id, name, facts))


def names(database: Database) -> tuple[list[str], list[str]]:
    """Return the added and the registered datasets."""
    with database.read() as session:
        return list(dataset_sources.added(session)), list(session.execute(select(Dataset.name)).scalars())


def refused(database: Database, act: Callable[[Session], object], error: type[JobsError], text: str) -> None:
    with pytest.raises(error, match=text):
        database.write(act)


def test_an_added_dataset_is_pending_until_a_worker_announces_it(database: Database) -> None:
    source = add(database)
    with database.read() as session:
        assert datasets.unsettled(session).pending == ["photos"]
        assert dataset_sources.added(session) == {"photos": source}
        assert dataset_sources.is_current(session, source)
    announced(database)
    with database.read() as session:
        assert datasets.unsettled(session).pending == []


def test_a_worker_reads_all_requests_of_users_in_one_message(database: Database) -> None:
    source, other = add(database), add(database, "more", "/data/more")
    announced(database)
    database.write(lambda session: datasets.read_again(session, "photos").id)
    messages: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: messages.append(args[2]))

    assert database.read_once(dataset_sources.requests) == ({"more": other, "photos": source}, {"photos": 1})
    assert len(messages) == 1


@pytest.mark.parametrize(
    ("name", "path", "pointer"),
    [
        ("Photos", "/data", "/name"),
        ("a/b", "/data", "/name"),
        ("photos", "data", "/path"),
        ("photos", "", "/path"),
        ("photos", "/a\0b", "/path"),
    ],
)
def test_a_wrong_name_or_path_is_refused(database: Database, name: str, path: str, pointer: str) -> None:
    with pytest.raises(Invalid) as caught:
        add(database, name, path)
    assert [error.pointer for error in caught.value.errors] == [pointer]


def test_a_name_is_given_once(database: Database) -> None:
    add(database)
    announced(database, "flowers")  # by the settings of a worker
    for name in ("photos", "flowers"):
        with pytest.raises(Conflict, match=f"there is a dataset {name}"):
            add(database, name)
    refused(database, lambda session: dataset_sources.rename(session, "photos", "flowers"), Conflict, "there is a")


def test_an_added_dataset_that_is_refused_is_replaced_by_one_of_another_path(database: Database) -> None:
    source = add(database, path="/data/photso")
    database.write(lambda session: workers.register(session, worker(datasets={}), 1, [], pending=["photos"]))
    refused(database, lambda session: dataset_sources.add(session, "photos", "/x", True, None), Conflict, "there is a")
    database.write(lambda session: workers.settle_dataset(session, WORKER.id, "photos", "there is nothing"))

    other = add(database, path="/data/photos")

    assert (other.path, other.id != source.id, names(database)) == ("/data/photos", True, (["photos"], []))
    with database.read() as session:
        assert datasets.unsettled(session) == datasets.Unsettled(["photos"], []), "no worker has looked at it yet"
    database.write(lambda session: workers.settle_dataset(session, WORKER.id, "photos", FACTS))
    refused(database, lambda session: dataset_sources.add(session, "photos", "/x", True, None), Conflict, "there is a")


def test_a_renamed_dataset_keeps_its_version_and_its_id(database: Database) -> None:
    source = add(database)
    announced(database)
    renamed = database.write(lambda session: dataset_sources.rename(session, "photos", "flowers"))
    assert (renamed.id, renamed.path, names(database)) == (source.id, source.path, (["flowers"], ["flowers"]))
    with database.read() as session:
        assert session.execute(select(Dataset.digest)).scalar_one() == FACTS.digest
        assert not dataset_sources.is_current(session, source)


def test_a_removed_dataset_is_gone_with_its_samples_and_can_be_added_again(database: Database) -> None:
    source = add(database)
    announced(database)
    database.write(lambda session: dataset_sources.remove(session, "photos"))
    assert names(database) == ([], [])
    assert rows.rows_of(database, DatasetSamples) == []
    assert add(database).id != source.id


def test_a_dataset_that_a_job_needs_stays(database: Database) -> None:
    add(database)
    announced(database)
    job_id = submit(database, spec=SPEC)
    refused(
        database, lambda session: dataset_sources.remove(session, "photos"), Conflict, "1 job has not ended on photos"
    )
    refused(database, lambda session: dataset_sources.rename(session, "photos", "x"), Conflict, "1 job has not ended")
    database.write(lambda session: transitions.cancel(session, job_id))
    database.write(lambda session: dataset_sources.remove(session, "photos"))


@pytest.mark.parametrize("change", ["remove", "rename"])
def test_a_dataset_of_the_same_name_in_the_settings_of_a_worker_stays(database: Database, change: str) -> None:
    add(database)
    announced(database)
    own = worker(id=rows.new_id(), datasets={}, own_datasets=("photos",))
    database.write(lambda session: workers.register(session, own, 2, [], pending=["photos"]))
    database.write(lambda session: workers.settle_dataset(session, own.id, "photos", replace(FACTS, digest="2" * 64)))
    arguments = ("photos",) if change == "remove" else ("photos", "flowers")
    database.write(lambda session: getattr(dataset_sources, change)(session, *arguments))
    with database.read() as session:
        held = {row.id: row.datasets for row in session.execute(select(Worker)).scalars()}
        assert held == {WORKER.id: {}, own.id: {"photos": "2" * 64}}
        kept = session.execute(select(Dataset)).scalar_one()
        assert (kept.name, kept.reads_requested) == ("photos", 1), "its worker announces it again"


def test_the_dataset_of_a_planned_evaluation_stays(database: Database) -> None:
    rows.add_dataset(database)
    add(database)
    announced(database)
    plan = {"protocols": ["map"], "data": SPEC["data"]}
    job_id = submit(database, spec={"evaluations": [plan]})
    text = "1 job has not ended on photos"
    refused(database, lambda session: dataset_sources.remove(session, "photos"), Conflict, text)
    database.write(lambda session: transitions.cancel(session, job_id))
    database.write(lambda session: dataset_sources.remove(session, "photos"))


def test_a_name_that_is_given_twice_at_once_is_a_conflict(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    add(database)
    add(database, "flowers")
    monkeypatch.setattr(dataset_sources, "_check_free", lambda *_: None)  # it was free a moment ago
    refused(database, lambda session: dataset_sources.add(session, "photos", "/x", True, None), Conflict, "there is a")
    refused(database, lambda session: dataset_sources.rename(session, "flowers", "photos"), Conflict, "there is a")


def test_a_removal_sees_the_job_that_is_submitted_meanwhile(database: Database) -> None:
    add(database)
    announced(database)
    has_submitted, may_commit = threading.Event(), threading.Event()

    def slow(session: Session) -> None:
        submission.submit(session, rows.new_job(spec=SPEC))
        has_submitted.set()
        may_commit.wait(30)

    with ThreadPoolExecutor(2) as pool:
        submitted = pool.submit(database.write, slow)
        has_submitted.wait(30)
        removed = pool.submit(database.write, lambda session: dataset_sources.remove(session, "photos"))
        time.sleep(0.3)
        assert not removed.done(), "it waits for the submission"
        may_commit.set()
        submitted.result()
        with pytest.raises(Conflict, match="1 job has not ended"):
            removed.result()


def test_a_dataset_of_the_settings_stays_while_a_worker_has_it(database: Database) -> None:
    announced(database)
    refused(database, lambda session: dataset_sources.remove(session, "photos"), Conflict, "settings of a worker")
    refused(database, lambda session: dataset_sources.rename(session, "photos", "x"), Conflict, "settings of a worker")
    refused(database, lambda session: dataset_sources.remove(session, "none"), NotFound, "there is no dataset 'none'")
    database.write(lambda session: workers.stop(session, WORKER.id))
    database.write(lambda session: dataset_sources.remove(session, "photos"))
    assert names(database) == ([], [])
