"""Workers, their heartbeats and drains, and the datasets that they announce."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import JSON, event, insert, select, type_coerce, update
from sqlalchemy.orm import Session

from jobs import queries, transitions, waiting, workers
from jobs.database import Database, new_id
from jobs.datasets import DatasetFacts
from jobs.eligibility import WorkerFacts
from jobs.errors import Conflict, NotFound
from jobs.models import Dataset, Job, Worker
from tests.jobs import rows
from tests.jobs.rows import at_once, worker

DIGITS = DatasetFacts("digits", "builtin", rows.DIGEST, {"train": 1000, "test": 100}, [str(n) for n in range(10)])


def register(database: Database, *datasets: DatasetFacts, worker_id: str | None = None) -> str:
    facts = worker(id=worker_id or new_id(), datasets={dataset.name: dataset.digest for dataset in datasets})
    database.write(lambda session: workers.register(session, facts, 42, datasets))
    return facts.id


def state(database: Database, worker_id: str) -> tuple[str, str | None, int]:
    with database.read() as session:
        row = session.get_one(Worker, worker_id)
    return row.state, row.job_id, row.heartbeats


def test_a_worker_announces_itself_and_its_datasets(database: Database) -> None:
    worker_id = register(database, DIGITS)

    with database.read() as session:
        row = session.get_one(Worker, worker_id)
        assert (row.pool, row.pid, row.state, row.spec_versions) == ("default", 42, "idle", ["1", "2"])
        assert row.datasets == {"digits": rows.DIGEST}
        assert row.seen_at > 1_700_000_000_000
        (dataset,) = queries.datasets(session)
        assert (dataset.name, dataset.kind, dataset.counts) == ("digits", "builtin", DIGITS.counts)
        assert dataset.classes == DIGITS.classes


def test_the_newest_announcement_of_a_name_replaces_older_ones(database: Database) -> None:
    register(database, DIGITS)
    with database.read() as session:
        first = session.execute(select(Dataset)).scalar_one()
    register(database, replace(DIGITS, digest="e" * 64, counts={"train": 5, "test": 5}, classes=["a"]))

    with database.read() as session:
        row = session.execute(select(Dataset)).scalar_one()
    assert (row.id, row.digest, row.counts, row.classes) == (first.id, "e" * 64, {"train": 5, "test": 5}, ["a"])
    assert row.updated_at >= first.updated_at


def test_workers_that_announce_at_once_all_register(database: Database) -> None:
    datasets = [replace(DIGITS, name=f"set-{number}") for number in range(5)]
    at_once(6, lambda _: register(database, *datasets))

    with database.read() as session:
        assert len(queries.workers(session)) == 6
        assert [dataset.name for dataset in queries.datasets(session)] == [dataset.name for dataset in datasets]


def test_a_worker_that_ended_a_week_ago_leaves_the_list_and_no_live_one_does(database: Database) -> None:
    live, ended, old = (register(database) for _ in range(3))
    for worker_id in (ended, old):
        database.write(lambda session, worker_id=worker_id: workers.stop(session, worker_id))  # type: ignore[misc]
    long_ago = update(Worker).where(Worker.id.in_((live, old))).values(seen_at=1)
    database.write(lambda session: session.execute(long_ago) and None)

    with database.read() as session:
        assert [row.id for row in queries.workers(session)] == [live, ended]


def test_many_ended_workers_hide_no_live_one(sqlite_database: Database) -> None:
    """Each job of a batch system may leave one."""
    live = register(sqlite_database)
    rows_of_ended = [{"id": new_id(), "state": "stopped"} for _ in range(250)]
    with sqlite_database.read() as session:
        facts = {
            column.name: getattr(session.get_one(Worker, live), column.key)
            for column in Worker.__table__.columns
            if column.name != "beats"
        }
    sqlite_database.write(
        lambda session: session.execute(insert(Worker.__table__), [facts | each for each in rows_of_ended]) and None
    )

    with sqlite_database.read() as session:
        assert queries.workers(session)[0].id == live


def test_a_heartbeat_records_the_workers_job(database: Database) -> None:
    worker_id = register(database)
    job_id = new_id()
    database.write(lambda session: workers.heartbeat(session, worker_id, job_id))
    assert state(database, worker_id) == ("busy", job_id, 1)
    database.write(lambda session: workers.heartbeat(session, worker_id, None))
    assert state(database, worker_id) == ("idle", None, 2)
    database.write(lambda session: workers.stop(session, worker_id))
    assert state(database, worker_id) == ("stopped", None, 2)


def test_a_heartbeat_that_comes_after_the_end_of_its_worker_does_not_revive_it(database: Database) -> None:
    """Its ticker may wait for the lock of the database while the worker stores its end."""
    worker_id = register(database)
    database.write(lambda session: workers.stop(session, worker_id))
    ended = state(database, worker_id)

    assert database.write(lambda session: workers.heartbeat(session, worker_id, None)) is False

    assert state(database, worker_id) == ended
    assert ended[0] == "stopped"


def test_a_new_heartbeat_wins_over_a_reconciler(database: Database) -> None:
    worker_id = register(database)
    database.write(lambda session: workers.heartbeat(session, worker_id, None))

    database.write(lambda session: workers.mark_lost(session, worker_id, 0))
    assert state(database, worker_id)[0] == "idle"
    database.write(lambda session: workers.mark_lost(session, worker_id, 1))
    assert state(database, worker_id)[0] == "lost"


def test_a_stopped_worker_is_not_lost(database: Database) -> None:
    worker_id = register(database)
    database.write(lambda session: workers.stop(session, worker_id))
    database.write(lambda session: workers.mark_lost(session, worker_id, 0))

    assert state(database, worker_id)[0] == "stopped"


def test_a_claim_shows_on_the_workers_row(database: Database) -> None:
    worker_id = register(database, DIGITS)
    job_id = rows.submit(database)
    rows.claim(database, worker(id=worker_id))

    assert state(database, worker_id) == ("busy", job_id, 0)


def test_hostile_names_are_stored_as_text(database: Database) -> None:
    facts = worker(id=new_id(), name="bad \0 \udcff name")
    classes = ["caf\udce9", "a\0b", "<b>"]
    database.write(lambda session: workers.register(session, facts, 1, [replace(DIGITS, classes=classes)]))

    with database.read() as session:
        assert session.get_one(Worker, facts.id).name == "bad \ufffd \ufffd name"
        assert session.execute(select(Dataset.classes)).scalar_one()[2] == "<b>"


# --- drains --------------------------------------------------------------------------------------------------------


def drain(database: Database, worker_id: str) -> Worker:
    return database.write(lambda session: workers.drain(session, worker_id))


def test_a_heartbeat_is_one_statement(database: Database) -> None:
    worker_id = register(database)
    messages: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: messages.append(args[2]))

    database.write(lambda session: workers.heartbeat(session, worker_id, None))

    assert [each.split()[0] for each in messages if not each.startswith("BEGIN")] == ["UPDATE"]


def test_every_heartbeat_returns_a_requested_drain(database: Database) -> None:
    worker_id, other = register(database), register(database)
    assert database.write(lambda session: workers.heartbeat(session, worker_id, None)) is False

    requested = drain(database, worker_id).drain_requested_at

    assert requested is not None
    assert database.write(lambda session: workers.heartbeat(session, worker_id, None)) is True
    assert database.write(lambda session: workers.heartbeat(session, other, None)) is False
    assert drain(database, worker_id).drain_requested_at == requested, "asking twice changes nothing"


def test_a_draining_worker_claims_no_job(database: Database) -> None:
    worker_id, other = register(database, DIGITS), register(database, DIGITS)
    job_id = rows.submit(database)

    drain(database, worker_id)

    assert rows.try_claim(database, worker(id=worker_id)) is None
    assert rows.claim(database, worker(id=other)).job_id == job_id


def test_a_concurrent_drain_and_claim_have_one_order(database: Database) -> None:
    """A claim after the drain takes no job; a job claimed before it is returned by the worker."""
    for _ in range(10):
        worker_id = register(database, DIGITS)
        job_id = rows.submit(database)

        def race(number: int, worker_id: str = worker_id) -> object:
            return drain(database, worker_id) if number else rows.try_claim(database, worker(id=worker_id))

        claimed, _ = at_once(2, race)
        assert rows.try_claim(database, worker(id=worker_id)) is None
        assert rows.status(database, job_id) == ("running" if claimed else "queued")
        if not claimed:
            database.write(lambda session, job_id=job_id: transitions.cancel(session, job_id))  # type: ignore[misc]


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_claim_waits_for_a_drain_that_is_under_way(database: Database) -> None:
    """PostgreSQL only: on SQLite writers take turns."""
    worker_id = register(database, DIGITS)
    job_id = rows.submit(database)
    with Session(database.engine) as other:
        workers.drain(other, worker_id)  # not committed yet
        with rows.in_background(lambda: rows.try_claim(database, worker(id=worker_id))) as claimed:
            rows.until_a_statement_waits_for_a_lock(database, or_done=claimed)
            other.commit()
    assert claimed.result() is None
    assert rows.status(database, job_id) == "queued"


def test_a_stopped_worker_cannot_be_drained(database: Database) -> None:
    lost, stopped = register(database), register(database)
    database.write(lambda session: workers.mark_lost(session, lost, 0))
    database.write(lambda session: workers.stop(session, stopped))

    assert drain(database, lost).drain_requested_at is not None
    with pytest.raises(Conflict, match="already stopped"):
        drain(database, stopped)
    with pytest.raises(NotFound):
        drain(database, new_id())


@pytest.mark.parametrize(
    ("field", "value", "default"),
    [
        ("device", "cpu", "auto"),
        ("execution", "eager", "auto"),
        ("nodes", 2, 1),
        ("batch_size", "auto", 240),
        ("micro_batch_size", "auto", None),
    ],
)
def test_an_older_worker_runs_specs_without_new_fields_alone(
    database: Database, field: str, value: Any, default: Any
) -> None:
    """During an upgrade, jobs with new fields wait for an upgraded worker, and say so."""
    old = WorkerFacts.of(announced(database, "old", (1,)))
    newer = rows.submit(database, spec={"batch_size": 240, field: value}, priority=9)
    earlier = rows.submit(database, spec={"batch_size": 240, field: default})

    with database.read() as session:
        stored = dict(session.execute(select(Job.id, type_coerce(Job.spec, JSON))).all())
        versions = dict(session.execute(select(Job.id, Job.spec_version)).all())
        why = waiting.explain(session, session.get_one(Job, newer))
    assert versions == {newer: 2, earlier: 1}
    assert (stored[newer][field], stored[newer]["spec_version"]) == (value, 2)
    assert {"device", "execution", "nodes"} & set(stored[earlier]) == set()
    assert stored[earlier]["spec_version"] == 1
    assert rows.job(database, earlier).spec[field] == default
    assert rows.claim(database, old).job_id == earlier
    assert rows.try_claim(database, old) is None
    assert why is not None
    assert ("old is too old for version 2" if field == "nodes" else "it needs a newer worker") in why.message
    new = WorkerFacts.of(announced(database, "new", (1, 2)))
    assert rows.try_claim(database, new) is None if field == "nodes" else rows.claim(database, new).job_id == newer


def announced(database: Database, name: str, spec_versions: tuple[int, ...]) -> Worker:
    """Register a worker that runs specs of some versions; return its row."""
    facts = worker(id=new_id(), name=name, address="10.0.0.1", spec_versions=spec_versions)
    database.write(lambda session: workers.register(session, facts, 42, [DIGITS]))
    database.write(lambda session: workers.heartbeat(session, facts.id, None, address=facts.address))
    with database.read() as session:
        return session.get_one(Worker, facts.id)


def test_a_cordoned_worker_takes_no_job_also_after_a_restart(database: Database) -> None:
    rows.add_dataset(database)
    facts = rows.worker()
    database.write(lambda session: workers.register(session, facts, 1, (), None, None, ()))
    job_id = rows.submit(database)

    database.write(lambda session: workers.cordon(session, facts.id, True))
    assert rows.try_claim(database, facts) is None
    with database.read() as session:
        assert not transitions.is_claimable(session, facts)
        waits = waiting.explain(session, session.get_one(Job, job_id))
    assert waits is not None
    assert waits.message.startswith("worker could run it, but is cordoned and takes no further job")

    database.write(lambda session: workers.stop(session, facts.id))
    again = rows.worker(id="00000000-0000-7000-8000-0000000000ab")
    database.write(lambda session: workers.register(session, again, 1, (), None, None, ()))
    assert rows.try_claim(database, again) is None
    with pytest.raises(Conflict, match="has ended"):
        database.write(lambda session: workers.cordon(session, facts.id, False))
    database.write(lambda session: workers.cordon(session, again.id, False))
    assert rows.claim(database, again).job_id == job_id


def test_a_live_worker_of_the_same_name_is_a_warning(database: Database) -> None:
    facts, other = rows.worker(), rows.worker(id="00000000-0000-7000-8000-0000000000ab")

    def warning() -> str | None:
        with database.read() as session:
            return workers.namesakes(session, facts)

    database.write(lambda session: workers.register(session, facts, 1, []))
    assert warning() is None
    database.write(lambda session: workers.register(session, other, 4711, []))
    assert f"another worker has the name {facts.name} (process 4711" in (warning() or "")
    database.write(lambda session: workers.stop(session, other.id))
    assert warning() is None


def test_a_health_check_says_why_a_worker_takes_no_jobs(sqlite_database: Database) -> None:
    def problem() -> str | None:
        with sqlite_database.read() as session:
            return workers.problem(session, "worker")

    def change(act: Any, *arguments: Any) -> None:
        sqlite_database.write(lambda session: act(session, *arguments) and None)

    assert problem() == "no worker worker has registered"
    worker_id = register(sqlite_database)
    assert problem() is None
    change(workers.heartbeat, worker_id, None, workers.Unable("storage", "the storage is away"))
    assert problem() == "worker worker takes no jobs: the storage is away"
    change(workers.heartbeat, worker_id, None)
    change(workers.cordon, worker_id, True)
    assert problem() == "worker worker is cordoned; `wcl worker uncordon` lets it take jobs again"
    change(workers.cordon, worker_id, False)
    change(workers.mark_lost, worker_id, state(sqlite_database, worker_id)[2])
    assert problem() == "worker worker takes no jobs: lost"
    change(workers.heartbeat, worker_id, None)
    change(workers.drain, worker_id)
    assert problem() == "worker worker is drained; restart it, and it takes jobs again"
    register(sqlite_database)  # the next one of the name
    assert problem() is None
