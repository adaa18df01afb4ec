"""Connections to PostgreSQL: their number has a limit, callers wait for one, and PgBouncer may stand between."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event, literal_column, select, text, update

from jobs import queries
from jobs.database import Database
from jobs.models import Dataset
from tests import servers
from tests.jobs import rows


def test_a_process_holds_no_more_connections_than_its_limit(postgres_database: Database) -> None:
    database = Database(postgres_database.url, connections=3)
    count = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'limited'")
    most = []

    def work(number: int) -> None:
        with database.read() as session:
            session.execute(text("SET LOCAL application_name = 'limited'"))
            most.append(session.execute(count).scalar_one())
            time.sleep(0.02)

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(work, range(120)))

    assert len(most) == 120
    assert max(most) <= 3
    database.dispose()


def test_a_caller_waits_while_the_server_has_no_connection_to_give(postgres_database: Database) -> None:
    """Connections of other programs fill the server; one of them ends."""
    with servers.postgres_server(max_connections="8", superuser_reserved_connections="0") as (_, url):
        address = url.replace("postgresql://", "postgresql+psycopg://", 1)
        others = [Database(address, connections=1) for _ in range(8)]
        held = [other.engine.connect() for other in others]
        for connection in held:
            connection.execute(text("SELECT 1"))
        database = Database(address)
        timer = threading.Timer(1.5, held[0].close)
        closing = threading.Timer(1.6, others[0].dispose)
        timer.start()
        closing.start()

        began = time.monotonic()
        with database.read() as session:
            assert session.execute(text("SELECT 1")).scalar_one() == 1
        assert time.monotonic() - began > 1

        for connection, other in zip(held[1:], others[1:], strict=True):
            connection.close()
            other.dispose()
        database.dispose()


def test_the_settings_of_a_transaction_end_with_it(postgres_database: Database) -> None:
    """A pooler gives the same connection to another program next."""
    with postgres_database.read() as session:
        assert session.execute(text("SHOW lock_timeout")).scalar_one() == "10s"
        assert session.execute(text("SHOW statement_timeout")).scalar_one() == "1min"
        assert session.execute(text("SHOW idle_in_transaction_session_timeout")).scalar_one() == "30s"
    for _ in range(8):  # a driver prepares a statement that it has sent five times, and forgets it at a rollback
        postgres_database.write(lambda session: session.execute(select(Dataset.name)).all())
    raw = postgres_database.engine.raw_connection()
    try:
        cursor = raw.cursor()
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == ("0",)
        cursor.execute("SELECT count(*) FROM pg_prepared_statements")
        assert cursor.fetchone() == (0,)
    finally:
        raw.close()


@pytest.fixture
def pooled(postgres_url: str) -> Iterator[Database]:
    """A migrated database behind a PgBouncer in transaction mode."""
    with servers.pgbouncer(postgres_url) as url:
        database = Database(url, connections=8)
        database.migrate()
        yield database
        database.dispose()


@pytest.mark.parametrize("query", ["", "?prepare_threshold=0"])
def test_pgbouncer_in_transaction_mode(postgres_url: str, query: str) -> None:
    """Many threads share fewer connections of the server, so that each transaction may be on another one."""
    with servers.pgbouncer(postgres_url) as url:
        database = Database(url + query, connections=8)
        database.migrate()
        rows.add_dataset(database)
        database.write(lambda session: session.execute(update(Dataset).values(kind="0")) and None)

        def work(number: int) -> None:
            for _ in range(12):
                database.write(lambda session: session.execute(update(Dataset).values(kind=Dataset.kind)) and None)
                with database.read() as session:
                    assert session.execute(select(Dataset.name)).scalar_one() == "digits"
                    assert session.execute(text("SHOW lock_timeout")).scalar_one() == "10s"
            rows.submit(database)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(16)))
        with database.read() as session:
            assert queries.counts_by_status(session) == {"queued": 16}
            assert session.execute(text("SHOW transaction_isolation")).scalar_one() == "repeatable read"
        database.dispose()


def test_other_programs_behind_the_pooler_keep_their_settings(pooled: Database, postgres_url: str) -> None:
    rows.add_dataset(pooled)
    other = servers.psycopg.connect(pooled.url.replace("+psycopg", ""), autocommit=True, prepare_threshold=None)
    with other:
        for _ in range(10):
            assert other.execute("SHOW lock_timeout").fetchone() == ("0",)
            assert other.execute("SHOW default_transaction_isolation").fetchone() == ("read committed",)


@pytest.mark.parametrize("use", ["read", "write", "row"])
def test_a_connection_that_has_ended_is_replaced_before_it_is_used(postgres_database: Database, use: str) -> None:
    """Its first message shows that it has ended: no other message is spent on a test of it."""
    database, statement = Database(postgres_database.url, connections=1), text("SELECT pg_backend_pid()")
    row = select(literal_column("pg_backend_pid()"))
    with database.read() as session:
        before = session.execute(statement).scalar_one()
    end = text("SELECT pg_terminate_backend(:pid, 5000)")
    assert postgres_database.write(lambda session: session.execute(end, {"pid": before}).scalar_one())

    if use == "read":
        with database.read() as session:
            after = session.execute(statement).scalar_one()
    elif use == "write":
        after = database.write(lambda session: session.execute(statement).scalar_one())
    else:
        after = database.read_row(row)[0]  # type: ignore[index]

    assert after != before
    database.dispose()


def test_a_row_is_read_by_one_message(postgres_database: Database) -> None:
    messages: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        messages.append(statement)

    event.listen(postgres_database.engine, "before_cursor_execute", note)
    try:
        assert postgres_database.read_row(select(literal_column("1"))) == (1,)
        assert len(messages) == 1
        with postgres_database.read() as session:
            session.execute(select(literal_column("1")))
        assert len(messages) == 3, "its settings come with the BEGIN"
    finally:
        event.remove(postgres_database.engine, "before_cursor_execute", note)
