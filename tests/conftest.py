"""Databases and servers for every test: SQLite files, a real PostgreSQL, a real Redis."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest

from jobs.database import Database
from tests import servers

_NUMBERS = count(1)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis on a free port, without persistence."""
    with servers.redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A real PostgreSQL on a free port; the URL of its maintenance database."""
    with servers.postgres() as url:
        yield url


@pytest.fixture(scope="session")
def migrated_postgres_url(postgres_server: str) -> str:
    """One migrated database, which tests use in turn: emptying it is several times faster than making another."""
    url = _create(postgres_server)
    database = Database(url)
    database.migrate()
    database.dispose()
    return url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file, which others are copied from."""
    path = tmp_path_factory.mktemp("template") / "wcl.sqlite3"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.dispose()
    return path


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """A new database without tables."""
    url = _create(postgres_server)
    yield url
    _administer(postgres_server, f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that nothing has migrated yet, in both modes."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'folder' / 'wcl.sqlite3'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def sqlite_database(sqlite_template: Path, tmp_path: Path) -> Iterator[Database]:
    """A migrated SQLite file."""
    path = tmp_path / "wcl.sqlite3"
    shutil.copyfile(sqlite_template, path)
    database = Database(f"sqlite:///{path}")
    yield database
    database.dispose()


@pytest.fixture
def postgres_database(migrated_postgres_url: str) -> Iterator[Database]:
    """A migrated PostgreSQL database without rows."""
    database = Database(migrated_postgres_url)
    servers.clear(database)
    yield database
    database.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Database:
    """A migrated database without rows, in both modes."""
    found: Database = request.getfixturevalue(f"{request.param}_database")
    return found


def _create(server: str) -> str:
    name = f"test_{next(_NUMBERS)}"
    _administer(server, f"CREATE DATABASE {name}")
    return server.replace("postgresql://", "postgresql+psycopg://", 1).rpartition("/")[0] + f"/{name}"


def _administer(server: str, statement: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(statement)
