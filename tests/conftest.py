"""Databases and servers for every test: SQLite files, a real PostgreSQL, a real Redis."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
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
def postgres_template(postgres_server: str) -> str:
    """The name of a migrated database, which others are copied from."""
    name = "migrated"
    _administer(postgres_server, f"CREATE DATABASE {name}")
    database = Database(_url_of(postgres_server, name))
    database.migrate()
    database.dispose()
    return name


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
    """A new, empty database."""
    with_database = _Database(postgres_server, None)
    yield with_database.url
    with_database.drop()


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
def postgres_database(postgres_server: str, postgres_template: str) -> Iterator[Database]:
    """A migrated PostgreSQL database."""
    made = _Database(postgres_server, postgres_template)
    database = Database(made.url)
    yield database
    database.dispose()
    made.drop()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Database:
    """A migrated database of its own for every test, in both modes."""
    found: Database = request.getfixturevalue(f"{request.param}_database")
    return found


@pytest.fixture(params=["sqlite", "postgres"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Database]]:
    """Makes a migrated database at each call, for tests that need many."""
    made: list[tuple[Database, Callable[[], None]]] = []

    def make() -> Database:
        if request.param == "sqlite":
            path = tmp_path / f"{next(_NUMBERS)}.sqlite3"
            shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
            made.append((Database(f"sqlite:///{path}"), path.unlink))
        else:
            server, template = (request.getfixturevalue(f"postgres_{name}") for name in ("server", "template"))
            copy = _Database(server, template)
            made.append((Database(copy.url), copy.drop))
        return made[-1][0]

    yield make
    for database, remove in made:
        database.dispose()
        remove()


class _Database:
    """One database of the server, made at once, dropped on demand."""

    def __init__(self, server: str, template: str | None) -> None:
        self._server = server
        self._name = f"test_{next(_NUMBERS)}"
        _administer(server, f"CREATE DATABASE {self._name}" + (f" TEMPLATE {template}" if template else ""))
        self.url = _url_of(server, self._name)

    def drop(self) -> None:
        _administer(self._server, f"DROP DATABASE {self._name} WITH (FORCE)")


def _administer(server: str, statement: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(statement)


def _url_of(server: str, name: str) -> str:
    return server.replace("postgresql://", "postgresql+psycopg://", 1).rsplit("/", 1)[0] + f"/{name}"
