"""Every kind of fault, raised for real by PostgreSQL and SQLite, is recognised; an error of the program is none."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, event, select, text, update
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.faults import Fault, describe, detail_of, fault_of, is_outage
from jobs.models import Dataset
from tests import servers
from tests.jobs.rows import add_dataset

ROLE = "limited"


def error_of(act: Callable[[], object]) -> DBAPIError:
    """The error of the database that an act raises."""
    with pytest.raises(DBAPIError) as raised:
        act()
    return raised.value


def assert_fault(error: BaseException, expected: Fault) -> None:
    assert fault_of(error) is expected, f"{error!r}\n{getattr(error, 'orig', None)!r}"
    assert is_outage(error)
    for line in (describe(error), detail_of(error, expected)):
        assert "SELECT" not in line.replace("for SELECT", ""), line
        assert "INSERT INTO" not in line
        assert "UPDATE datasets" not in line
        assert "[SQL" not in line
        assert "\n" not in line


def rename(session: Session) -> None:
    session.execute(update(Dataset).values(kind="renamed"))


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


@pytest.fixture
def administrator(postgres_server: str, postgres_database: Database) -> Iterator[psycopg.Connection]:
    """A superuser's connection to the database of `postgres_database`."""
    name = postgres_database.engine.url.database
    with psycopg.connect(postgres_server.rpartition("/")[0] + f"/{name}", autocommit=True) as connection:
        yield connection


@pytest.fixture
def own(postgres_database: Database) -> Iterator[Database]:
    """Connections that begin after the test has changed the server."""
    database = Database(postgres_database.url)
    yield database
    database.dispose()


@contextmanager
def as_role(administrator: psycopg.Connection, database: Database) -> Iterator[Database]:
    """The same database by an account that may read and write, and nothing else."""
    administrator.execute(f"CREATE ROLE {ROLE} LOGIN")
    administrator.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {ROLE}")
    other = Database(database.engine.url.set(username=ROLE).render_as_string())
    yield other
    other.dispose()
    administrator.execute(f"DROP OWNED BY {ROLE}")
    administrator.execute(f"DROP ROLE {ROLE}")


def test_a_read_only_postgres(postgres_database: Database, administrator: psycopg.Connection, own: Database) -> None:
    name = postgres_database.engine.url.database
    administrator.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        assert_fault(error_of(lambda: own.write(rename)), Fault.READ_ONLY)
    finally:
        administrator.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")


def test_too_many_connections(
    postgres_database: Database, administrator: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.database._CONNECTION_WAIT_SECONDS", 0.3)
    with as_role(administrator, postgres_database) as limited:
        administrator.execute(f"ALTER ROLE {ROLE} CONNECTION LIMIT 1")
        with limited.read():
            assert_fault(error_of(lambda: limited.write(rename)), Fault.OVERLOADED)
        limited.write(rename)


def test_no_free_connection_of_this_process(postgres_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.database._CONNECTION_WAIT_SECONDS", 0.3)
    one = Database(postgres_database.url, connections=1)
    with one.read():
        assert_fault(error_of(lambda: one.write(rename)), Fault.OVERLOADED)
    one.write(rename)
    one.dispose()


def test_a_terminated_connection(administrator: psycopg.Connection, own: Database) -> None:
    with own.read() as session:
        pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
        administrator.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        assert_fault(error_of(lambda: session.execute(select(Dataset.kind))), Fault.UNREACHABLE)


def test_a_database_that_is_gone(postgres_server: str) -> None:
    url = postgres_server.replace("postgresql://", "postgresql+psycopg://", 1).rpartition("/")[0] + "/absent"
    assert_fault(error_of(lambda: Database(url).write(rename)), Fault.UNREACHABLE)


@pytest.mark.postgres
def test_a_postgres_that_shuts_down() -> None:
    """It refuses new connections while it waits for the open ones."""
    with servers.postgres_server() as (server, url):
        database = Database(url.replace("postgresql://", "postgresql+psycopg://", 1))
        with psycopg.connect(url) as held:
            held.execute("SELECT 1")
            server.send(servers.signal.SIGTERM)
            error = error_of(lambda: database.write(lambda s: s.execute(text("SELECT 1"))))
            while "shutting down" not in str(error):
                error = error_of(lambda: database.write(lambda s: s.execute(text("SELECT 1"))))
        assert_fault(error, Fault.UNREACHABLE)
        database.dispose()


@pytest.mark.parametrize("setting", ["lock_timeout", "statement_timeout"])
def test_a_wait_that_takes_too_long(postgres_database: Database, own: Database, setting: str) -> None:
    add_dataset(postgres_database)

    def wait_briefly(session: Session) -> None:
        session.execute(text(f"SET LOCAL {setting} = '50ms'"))
        rename(session)

    with Session(postgres_database.engine) as holder:
        rename(holder)
        assert_fault(error_of(lambda: own.write(wait_briefly)), Fault.TIMEOUT)


def test_a_deadlock_and_a_conflict_are_run_again_at_once(postgres_database: Database, own: Database) -> None:
    add_dataset(postgres_database)
    add_dataset(postgres_database, name="other")
    errors: list[DBAPIError] = []

    def change(database: Database, first: str, second: str, met: threading.Barrier) -> None:
        try:
            with Session(database.engine) as session:
                session.execute(update(Dataset).where(Dataset.name == first).values(kind=first))
                met.wait(30)
                session.execute(update(Dataset).where(Dataset.name == second).values(kind=first))
                session.commit()
        except DBAPIError as error:
            errors.append(error)

    barrier = threading.Barrier(2)
    other = threading.Thread(target=change, args=(own, "other", "digits", barrier))
    other.start()
    change(postgres_database, "digits", "other", barrier)
    other.join()
    assert len(errors) == 1
    assert_fault(errors[0], Fault.BUSY)

    with postgres_database.read() as session:  # a snapshot
        session.execute(select(Dataset.kind)).all()
        own.write(rename)
        assert_fault(error_of(lambda: rename(session)), Fault.BUSY)


def test_a_revoked_right_is_named(postgres_database: Database, administrator: psycopg.Connection) -> None:
    add_dataset(postgres_database)
    with as_role(administrator, postgres_database) as limited:
        administrator.execute(f"REVOKE UPDATE ON datasets FROM {ROLE}")
        for change in (rename, lambda session: session.execute(select(Dataset).with_for_update())):
            error = error_of(lambda change=change: limited.write(change))  # type: ignore[misc]

            assert_fault(error, Fault.FORBIDDEN)
            assert "permission denied for table datasets, for UPDATE" in describe(error)
            assert "permission denied for table datasets, for UPDATE" in detail_of(error, Fault.FORBIDDEN)


def test_missing_tables(postgres_url: str) -> None:
    database = Database(postgres_url)
    assert_fault(error_of(lambda: database.write(rename)), Fault.SCHEMA)
    database.dispose()


@contextmanager
def small_disk(folder: Path, size: str, owner: servers.Account) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={size}" + (f",uid={owner.uid},gid={owner.gid},mode=700" if owner.uid is not None else "")
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]).returncode:
        pytest.skip("NOT TESTED HERE: a small file system needs root and the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.postgres
def test_a_full_disk_of_postgres() -> None:
    """A tablespace is on a small file system."""
    with (
        servers.postgres_server() as (server, url),
        small_disk(server.folder / "small", "1m", server.account) as folder,
    ):
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE TABLESPACE small LOCATION '{folder}'"))
            connection.execute(text("CREATE TABLE filler (line text) TABLESPACE small"))

            def fill() -> None:
                for _ in range(50):
                    filler = "INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 100)"
                    connection.execute(text(filler))

            assert_fault(error_of(fill), Fault.FULL)
        engine.dispose()


@pytest.mark.postgres
def test_a_damaged_table_of_postgres() -> None:
    with servers.postgres_server() as (server, url):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE victim AS SELECT generate_series(1, 1000) AS number")
            connection.execute("CHECKPOINT")
            (place,) = connection.execute("SELECT pg_relation_filepath('victim')").fetchone() or ("",)
        server.end()
        with (server.folder / "data" / place).open("r+b") as file:
            file.write(b"\xff" * 100)
        server.start()
        database = Database(url.replace("postgresql://", "postgresql+psycopg://", 1))
        error = error_of(lambda: database.write(lambda session: session.execute(text("SELECT * FROM victim"))))
        assert_fault(error, Fault.DAMAGED)
        database.dispose()


# --- SQLite ----------------------------------------------------------------------------------------------------------


def file_of(database: Database) -> Path:
    assert database.engine.url.database
    return Path(database.engine.url.database)


@pytest.mark.process
def test_a_sqlite_file_that_another_process_locks(sqlite_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.database._BUSY_TIMEOUT_MS", 1)
    monkeypatch.setattr("jobs.database._MAX_TRIES", 2)
    impatient = Database(sqlite_database.url)
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN EXCLUSIVE');"
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(file_of(sqlite_database))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout
        assert owner.stdout.readline() == b"locked\n"
        assert_fault(error_of(lambda: impatient.write(rename)), Fault.BUSY)
        owner.communicate()
    impatient.write(rename)
    impatient.dispose()


def test_a_full_sqlite_file(sqlite_database: Database) -> None:
    @event.listens_for(sqlite_database.engine, "connect")
    def limit(connection: sqlite3.Connection, record: Any) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages}")

    def fill(session: Session) -> None:
        for number in range(200):
            row = {"id": str(number), "name": "x" * 1000}
            session.execute(text("INSERT INTO projects (id, name) VALUES (:id, :name || :id)"), row)

    sqlite_database.dispose()
    assert_fault(error_of(lambda: sqlite_database.write(fill)), Fault.FULL)


@pytest.mark.process
def test_a_full_disk_of_sqlite(sqlite_database: Database, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "1m", servers.Account(None, None)) as folder:
        (folder / "wcl.sqlite3").write_bytes(file_of(sqlite_database).read_bytes())
        filler = folder / "filler"
        database = Database(f"sqlite:///{folder / 'wcl.sqlite3'}")
        with filler.open("wb") as file:
            while os.statvfs(folder).f_bavail:
                file.write(b"x" * 4096)
                file.flush()
        add = "INSERT INTO projects (id, name) VALUES ('another', 'another')"
        assert_fault(error_of(lambda: database.write(lambda session: session.execute(text(add)))), Fault.FULL)
        filler.unlink()
        database.write(lambda session: session.execute(text(add)))
        database.dispose()


def test_a_read_only_sqlite_file(sqlite_database: Database) -> None:
    database = Database(f"sqlite:///file:{file_of(sqlite_database)}?mode=ro&uri=true")
    with database.read() as session:
        assert session.execute(select(Dataset)).all() == []
    add = "INSERT INTO projects (id, name) VALUES ('another', 'another')"
    assert_fault(error_of(lambda: database.write(lambda session: session.execute(text(add)))), Fault.READ_ONLY)
    database.dispose()


def test_a_sqlite_file_that_cannot_be_written(sqlite_database: Database) -> None:
    """The system refuses the bytes, here by a limit on the size of files, which root has, too."""
    add = "INSERT INTO projects (id, name) VALUES (:id, :id)"

    def fill(session: Session) -> None:
        for number in range(3000):
            session.execute(text(add), {"id": f"{number:0100}"})

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_of(sqlite_database).stat().st_size, before[1]))
    try:
        error = error_of(lambda: sqlite_database.write(fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_fault(error, Fault.IO)
    sqlite_database.write(lambda session: session.execute(text(add), {"id": "another"}))


def test_a_sqlite_file_whose_folder_is_gone() -> None:
    assert_fault(error_of(lambda: Database("sqlite:////no/such/folder/wcl.sqlite3").write(rename)), Fault.UNREACHABLE)


def test_a_damaged_sqlite_file(sqlite_database: Database) -> None:
    add_dataset(sqlite_database)
    sqlite_database.dispose()
    path = file_of(sqlite_database)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    assert_fault(error_of(lambda: sqlite_database.write(rename)), Fault.DAMAGED)
    sqlite_database.dispose()

    path.write_bytes(b"no database at all" * 1000)
    assert_fault(error_of(lambda: sqlite_database.write(rename)), Fault.DAMAGED)


def test_a_sqlite_file_without_the_tables(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new.sqlite3'}")
    assert_fault(error_of(lambda: database.write(rename)), Fault.SCHEMA)
    database.dispose()


# --- errors of the program -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    ["SELEKT 1", "INSERT INTO projects (id, name) VALUES ('x', 'default')", "SELECT no_such_function(1)"],
)
def test_an_error_of_the_program_is_no_fault(database: Database, statement: str) -> None:
    error = error_of(lambda: database.write(lambda session: session.execute(text(statement))))

    assert fault_of(error) is None
    assert not is_outage(error)


def test_an_error_without_a_code_counts_by_its_class() -> None:
    lost = OperationalError("COMMIT", None, ConnectionError("the network is down"))
    assert fault_of(lost) is Fault.UNREACHABLE
    assert fault_of(DBAPIError("COMMIT", None, ValueError("no"))) is None
    assert fault_of(ValueError("no")) is None
