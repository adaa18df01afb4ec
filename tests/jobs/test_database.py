"""Both databases: clock, ids, retried writes, short reads, and outages."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from jobs import database as module
from jobs.database import Database, is_outage, new_id, now_ms
from jobs.models import Dataset
from tests import servers
from tests.jobs.rows import add_dataset, at_once, in_background, until_a_statement_waits_for_a_lock
from tests.waiting import patch_clock
from wcl_core.protocol import storable

# --- time and ids --------------------------------------------------------------------------------------------------


def test_the_databases_clock_has_milliseconds(database: Database) -> None:
    times: set[int] = set()
    begin = time.time()
    while len({value % 1000 for value in times}) < 20:  # a clock of seconds would stay at 0
        with database.read() as session:
            times.add(session.execute(select(now_ms())).scalar_one())
        assert time.time() - begin < 60

    assert begin * 1000 - 2000 < min(times) <= max(times) < time.time() * 1000 + 2000


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_time_advances_within_a_transaction(database: Database) -> None:
    with database.read() as session:
        first = session.execute(select(now_ms())).scalar_one()
        session.execute(text("SELECT pg_sleep(0.02)"))
        assert session.execute(select(now_ms())).scalar_one() > first


def test_ids_are_uuid7_and_sort_by_age() -> None:
    created = []
    for _ in range(200):
        created.append(new_id())
        before = time.time_ns() // 1000
        while time.time_ns() // 1000 == before:
            pass

    assert created == sorted(created)
    for each in created:
        assert (UUID(each).version, str(UUID(each))) == (7, each)
        assert UUID(each).variant == "specified in RFC 4122"
        assert abs((UUID(each).int >> 80) - time.time() * 1000) < 60_000


def test_ids_never_repeat() -> None:
    created = [each for batch in at_once(4, lambda _: [new_id() for _ in range(5000)]) for each in batch]

    assert len(set(created)) == len(created)


@pytest.mark.parametrize("value", ["plain", "é🏁", "a\0b", "\ud800", "a\udcffb", ""])
def test_storable_text_can_be_stored(value: str) -> None:
    kept = storable(value)

    assert len(kept) == len(value)
    assert "\0" not in kept.encode().decode()
    assert (kept == value) == ("\0" not in value and value.isprintable())


# --- writes --------------------------------------------------------------------------------------------------------


def rename(session: Session, kind: str) -> None:
    session.execute(update(Dataset).values(kind=kind))


def kind_of(database: Database) -> str:
    with database.read() as session:
        return session.execute(select(Dataset.kind)).scalar_one()


@pytest.fixture(autouse=True)
def _dataset(request: pytest.FixtureRequest) -> None:
    if "database" in request.fixturenames:
        add_dataset(request.getfixturevalue("database"))


def test_a_write_commits_and_a_read_does_not(database: Database) -> None:
    database.write(lambda session: rename(session, "written"))
    with database.read() as session:
        assert session.execute(select(Dataset.kind)).scalar_one() == "written"
        if database.engine.dialect.name == "postgresql":
            rename(session, "read")

    assert kind_of(database) == "written"


def test_a_write_that_fails_leaves_nothing(database: Database) -> None:
    def fail(session: Session) -> None:
        rename(session, "half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        database.write(fail)
    assert kind_of(database) == "builtin"


def test_an_error_in_the_change_is_not_retried(database: Database) -> None:
    calls = []

    def double(session: Session) -> None:
        calls.append(1)
        session.execute(text("INSERT INTO projects (id, name) VALUES ('another', 'default')"))

    with pytest.raises(IntegrityError):
        database.write(double)
    assert calls == [1]


def test_concurrent_writers_lose_no_update(database: Database) -> None:
    """A change reads and then writes; on SQLite a writer locks before it reads."""

    def add(session: Session) -> None:
        value = session.execute(select(Dataset.kind).with_for_update()).scalar_one()
        rename(session, str(int(value) + 1))

    database.write(lambda session: rename(session, "0"))
    at_once(8, lambda _: [database.write(add) for _ in range(5)])

    assert kind_of(database) == "40"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_writer_has_the_lock_before_it_reads(database: Database) -> None:
    """Otherwise two writers that have both read would block each other for ever."""
    other = sqlite3.connect(str(database.engine.url.database), isolation_level=None, timeout=0)

    def change(session: Session) -> None:
        del session
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")

    database.write(change)
    other.close()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_busy_write_is_run_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process holds the lock for longer than the driver waits."""
    other = sqlite3.connect(str(database.engine.url.database), isolation_level=None, check_same_thread=False)
    monkeypatch.setattr(module, "_BUSY_TIMEOUT_MS", 20)
    busy = Database(database.url)
    tries = threading.Semaphore(0)
    patch_clock(monkeypatch, module, sleep=lambda seconds: tries.release())
    other.execute("BEGIN IMMEDIATE")
    with in_background(lambda: busy.write(lambda session: rename(session, "at last"))) as writing:
        assert tries.acquire(timeout=30)  # the database was busy at least once
        other.execute("ROLLBACK")
        writing.result(timeout=30)
    other.close()
    busy.dispose()

    assert kind_of(database) == "at last"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_write_gives_up_with_an_outage(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUSY_TIMEOUT_MS", 1)
    monkeypatch.setattr(module, "_MAX_TRIES", 3)
    busy = Database(database.url)
    other = sqlite3.connect(str(database.engine.url.database), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")

    with pytest.raises(OperationalError) as raised:
        busy.write(lambda session: rename(session, "never"))
    assert is_outage(raised.value)
    with pytest.raises(OperationalError) as raised, busy.read() as session:  # a reader does not wait for ever
        session.execute(select(Dataset.kind))
    assert is_outage(raised.value)
    other.close()
    busy.dispose()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_open_reader_delays_a_commit_and_loses_nothing(database: Database) -> None:
    with database.read() as session:
        assert session.execute(select(Dataset.kind)).scalar_one() == "builtin"
        with in_background(lambda: database.write(lambda other: rename(other, "later"))) as writing:
            assert session.execute(select(Dataset.kind)).scalar_one() == "builtin"
            session.rollback()
            writing.result(timeout=60)

    assert kind_of(database) == "later"


def test_a_commit_that_a_reader_delays_for_too_long_is_run_again(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite leaves the transaction open whose COMMIT has failed."""
    monkeypatch.setattr(module, "_BUSY_TIMEOUT_MS", 100)
    database = Database(sqlite_database.url)
    reader = sqlite3.connect(database.engine.url.database or "", isolation_level=None, check_same_thread=False)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM datasets").fetchall()
    timer = threading.Timer(0.5, reader.rollback)
    timer.start()

    add_dataset(database, "late")
    timer.join()
    reader.close()

    with database.read() as session:
        assert session.execute(select(Dataset.name)).scalars().all() == ["late"]
    database.dispose()


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_deadlock_is_run_again(database: Database) -> None:
    add_dataset(database, name="other")
    met = threading.Barrier(2)
    first_try = [True, True]

    def change(session: Session, number: int) -> None:
        order = ("digits", "other") if number else ("other", "digits")
        session.execute(update(Dataset).where(Dataset.name == order[0]).values(kind=f"by {number}"))
        if first_try[number]:
            first_try[number] = False
            met.wait(timeout=30)  # each has locked one row and needs the other one
        session.execute(update(Dataset).where(Dataset.name == order[1]).values(kind=f"by {number}"))

    at_once(2, lambda number: database.write(lambda session: change(session, number)))
    with database.read() as session:
        kinds = set(session.execute(select(Dataset.kind)).scalars())
    assert len(kinds) == 1  # one of them came last, completely


# --- outages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["postgresql+psycopg://wcl@127.0.0.1:1/wcl", "sqlite:////no/such/folder/wcl.sqlite3"])
def test_an_unreachable_database_is_an_outage(url: str) -> None:
    database = Database(url)
    with pytest.raises(OperationalError) as raised, database.read() as session:
        session.execute(select(Dataset.kind))

    assert is_outage(raised.value)
    with pytest.raises(OperationalError):
        database.write(lambda session: rename(session, "never"))


def test_programming_errors_are_not_outages(database: Database) -> None:
    for statement in ("SELEKT 1", "INSERT INTO projects VALUES ('x', 'default')"):
        with pytest.raises((IntegrityError, ProgrammingError, OperationalError)) as raised, database.read() as session:
            session.execute(text(statement))
        if database.engine.dialect.name == "postgresql":  # SQLite reports a syntax error as an operational error
            assert not is_outage(raised.value)
    assert not is_outage(ValueError("no"))
    assert is_outage(PoolTimeout("every connection is in use"))


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_cut_connection_is_an_outage_and_the_next_one_works(database: Database) -> None:
    other = Database(database.url)
    with database.read() as session:
        own = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
        other.write(lambda s: s.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": own}))
        with pytest.raises(DBAPIError) as raised:
            session.execute(select(Dataset.kind))
    other.dispose()

    assert is_outage(raised.value)
    assert kind_of(database) == "builtin"


@pytest.mark.postgres
def test_a_stopped_postgres_is_an_outage_until_it_is_back() -> None:
    with servers.postgres() as server:
        database = Database(server.replace("postgresql://", "postgresql+psycopg://", 1))
        database.migrate()
        add_dataset(database)
        assert kind_of(database) == "builtin"

    with pytest.raises(OperationalError) as raised:
        kind_of(database)
    assert is_outage(raised.value)
    with pytest.raises(OperationalError) as raised:
        database.write(lambda session: rename(session, "never"))
    assert is_outage(raised.value)
    database.dispose()


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_postgres_has_a_limit_on_every_wait(database: Database) -> None:
    """A process that is stopped inside a transaction loses it, so that waits for its locks end."""
    with database.read() as session:
        for name in ("idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout"):
            assert session.execute(text(f"SHOW {name}")).scalar_one() not in ("0", ""), name

    def wait_briefly(session: Session) -> None:
        session.execute(text("SET LOCAL lock_timeout = '50ms'"))
        rename(session, "never")

    with Session(database.engine) as holder:
        rename(holder, "held")
        with pytest.raises(OperationalError) as raised:
            database.write(wait_briefly)
        assert is_outage(raised.value)
        holder.rollback()


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_the_url_overrides_the_connection_defaults(database: Database) -> None:
    received: dict[str, Any] = {}
    own = Database(f"{database.url}?connect_timeout=3")
    with own.engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        received = raw.info.get_parameters()
    own.dispose()

    assert (received["connect_timeout"], received["keepalives_idle"]) == ("3", "10")


def test_a_migration_waits_for_its_turn_without_a_limit(postgres_url: str) -> None:
    database, own = Database(postgres_url), Database(postgres_url)
    with Session(database.engine) as holder:
        holder.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        holder.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": 0x57434C})
        with in_background(own.migrate) as migrating:
            until_a_statement_waits_for_a_lock(database)
            holder.rollback()
            migrating.result(timeout=60)
    assert own.is_migrated()
    own.dispose()
    database.dispose()


def test_sqlite_keeps_what_it_committed(sqlite_template: Path) -> None:
    """The fixture's own databases wait for no disk."""
    database = Database(f"sqlite:///{sqlite_template}")
    with database.read() as session:
        facts = {
            name: session.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("synchronous", "foreign_keys", "journal_mode")
        }
    database.dispose()

    safe = "wal" if sqlite3.sqlite_version_info >= (3, 51, 3) else "truncate"
    assert facts == {"synchronous": 2, "foreign_keys": 1, "journal_mode": safe}


def test_the_folder_of_a_new_sqlite_file_is_made(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/a/b/wcl.sqlite3")
    database.migrate()
    add_dataset(database)

    assert kind_of(database) == "builtin"
    database.dispose()
