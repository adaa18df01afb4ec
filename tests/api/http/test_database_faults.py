"""Faults of the database as clients see them: 503 with a sentence, `Retry-After` where waiting helps, and no SQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import QueuePool

from jobs.database import Database
from tests.api.served import SPEC, Served, assert_problem
from tests.jobs import rows
from tests.waiting import eventually

JOB: dict[str, Any] = {"kind": "pretrain", "spec": SPEC}


@pytest.fixture
def on_postgres(postgres_database: Database, tmp_path: Path) -> Iterator[Served]:
    rows.add_dataset(postgres_database)
    server = Served(postgres_database, tmp_path / "data")
    server.start()
    yield server
    server.stop()


def administer(served: Served, statement: str) -> None:
    """Run a statement as the superuser, and let the server open new connections."""
    url = served.database.url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True, options="-c default_transaction_read_only=off") as connection:
        connection.execute(statement)
    close(served.database)


def close(database: Database) -> None:
    """Close all connections, also those that note the use of a key: that follows a response, and takes a moment."""
    pool = database.engine.pool
    assert isinstance(pool, QueuePool)
    eventually(lambda: pool.checkedout() == 0, "the end of all requests")
    database.dispose()


def assert_unavailable(answer: httpx.Response, words: str, is_passing: bool = True) -> None:
    problem = assert_problem(answer, 503)
    assert words in problem["detail"]
    assert "INSERT INTO" not in answer.text
    assert ("retry-after" in answer.headers) == is_passing


def test_a_read_only_postgres_reads_and_refuses_writes(on_postgres: Served) -> None:
    client = on_postgres.client()
    name = on_postgres.database.engine.url.database
    administer(on_postgres, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        assert_unavailable(client.post("/v1/jobs", json=JOB), "the database is read-only")
        assert client.get("/v1/jobs").status_code == 200
    finally:
        administer(on_postgres, f"ALTER DATABASE {name} RESET default_transaction_read_only")
    assert client.post("/v1/jobs", json=JOB).status_code == 201


def test_a_revoked_right_is_named_without_the_statement(on_postgres: Served) -> None:
    client = on_postgres.client()
    administer(on_postgres, "CREATE ROLE reader LOGIN")
    administer(on_postgres, "GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO reader")
    own, url = on_postgres.database, on_postgres.database.engine.url
    limited = Database(url.set(username="reader").render_as_string())
    on_postgres.app.state.database = limited
    try:
        answer = client.post("/v1/jobs", json=JOB)
        assert_unavailable(answer, "permission denied for table jobs, for INSERT", is_passing=False)
    finally:
        on_postgres.app.state.database = own
        close(limited)
        administer(on_postgres, "DROP OWNED BY reader")
        administer(on_postgres, "DROP ROLE reader")


def test_a_full_and_a_locked_sqlite_file(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    client = small.client()
    place = str(small.database.engine.url.database)
    monkeypatch.setattr("jobs.database._MAX_TRIES", 1)
    other = sqlite3.connect(place, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert_unavailable(client.post("/v1/jobs", json=JOB), "the database is busy")
    other.execute("ROLLBACK")
    other.close()
    assert client.post("/v1/jobs", json=JOB).status_code == 201


def test_a_damaged_sqlite_file_is_called_damaged(small: Served) -> None:
    client = small.client()
    place = Path(str(small.database.engine.url.database))
    close(small.database)
    content = place.read_bytes()
    place.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    try:
        assert_unavailable(client.get("/v1/jobs"), "restore a backup", is_passing=False)
        assert "restore a backup" in small.bare().get("/readyz").json()["detail"]
    finally:
        close(small.database)
        place.write_bytes(content)
    assert client.get("/v1/jobs").status_code == 200


def test_a_newer_schema_is_named_by_readyz(small: Served) -> None:
    place = str(small.database.engine.url.database)
    with sqlite3.connect(place) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    assert "newer version" in assert_problem(small.bare().get("/readyz"), 503)["detail"]
