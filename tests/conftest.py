"""Databases and servers for every test: SQLite files, a real PostgreSQL, a real Redis; and marks by what a test starts.

The marks `postgres`, `redis`, `browser`, `server` and `process` follow from a test's fixtures and parameters.  A test
that starts something by itself carries its mark; `_nothing_unmarked` makes an unmarked one fail.  `--fast` runs the
tests without any of these marks.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest

from jobs.database import Database, database_time
from tests import servers

_NUMBERS = count(1)

_STARTED_BY_FIXTURE = {
    "postgres_server": "postgres",
    "redis_url": "redis",
    "bucket_server": "server",
    "browser": "browser",
    "served": "server",
    "small": "server",
    "shared": "server",
    "server": "server",
    "site": "server",
    "receiver": "server",
    "service": "process",
    "small_service": "process",
    "start_worker": "process",
    "house": "process",
    "small_disk": "process",  # mounts one
}
_STARTED = ("postgres", "redis", "browser", "server", "process")
# About the seconds of a test that starts such a thing; of another one: a fifth of a second
_SECONDS = {"process": 8.0, "slow": 1.5, "browser": 6.0, "server": 0.5, "postgres": 0.5, "redis": 0.5}
_GARBAGE = 10_000  # new objects before a collection; Python begins one after 700
_SHARE = 1 / 20  # of the time that a test has by a mark of its own
_MARKS_OF_SLOW = re.compile(rf"\bpytest\.mark\.(?:{'|'.join((*_STARTED, 'slow', 'long'))})\b")
_SLOW_DECORATOR = re.compile(rf"^@{_MARKS_OF_SLOW.pattern}", re.MULTILINE)
_MODULE_MARKS = re.compile(r"^pytestmark = (\[[^\]]*\]|.*)", re.MULTILINE)
_FUNCTION = re.compile(r"^((?:@.*\n(?:[ )\]}].*\n)*)*)def (\w+)\(([^)]*)\)", re.MULTILINE)
_CLASS = re.compile(r"^(?:class )?Test", re.MULTILINE)
_NAME = re.compile(r"\w+")
# Folders whose every test starts processes
_NEVER_FAST = ("acceptance", "benchmarks", "chaos", "fuzz", "kills", "mutants", "docs", "examples")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--fast`."""
    parser.addoption("--fast", action="store_true", help="only tests that start nothing; SQLite only")


def pytest_configure() -> None:
    """Collect no garbage until all tests are collected: hardly anything that is made meanwhile is garbage."""
    gc.disable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip the import of folders and files that have no fast test, with `--fast`."""
    if not config.getoption("fast"):
        return None
    if collection_path.is_dir():
        return True if collection_path.name in _NEVER_FAST else None
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if is_test and not _may_be_fast(collection_path.read_text()) else None


def _may_be_fast(source: str) -> bool:
    """Return whether a test of a module may be fast, by its source: what is not clear from it may be."""
    if any(_MARKS_OF_SLOW.search(marks) for marks in _MODULE_MARKS.findall(source)):
        return False
    functions = {name: (decorators, set(_NAME.findall(given))) for decorators, name, given in _FUNCTION.findall(source)}
    starting = set(_STARTED_BY_FIXTURE)
    starting |= {name for name, (_, given) in functions.items() if starting & given}
    is_fast = (
        not starting & given and not _SLOW_DECORATOR.search(decorators)
        for name, (decorators, given) in functions.items()
        if name.startswith("test_")
    )
    return any(is_fast) or _CLASS.search(source) is not None


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> list[pytest.Item] | None:
    """With `--fast`, make no items of a function that starts something by its own arguments or its module's mark."""
    if not collector.config.getoption("fast") or not name.startswith("test_") or not inspect.isfunction(obj):
        return None
    marks = getattr(getattr(collector, "obj", None), "pytestmark", [])
    own = {mark.name for mark in (marks if isinstance(marks, list) else [marks])}
    arguments = obj.__code__.co_varnames[: obj.__code__.co_argcount]
    return [] if own & {*_STARTED, "slow"} or _STARTED_BY_FIXTURE.keys() & set(arguments) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark every test by what it starts, and with `--fast` deselect those that start anything."""
    for item in items:
        for mark in _starts(item):
            item.add_marker(mark)
    if config.getoption("fast"):
        slow = [item for item in items if any(item.get_closest_marker(mark) for mark in (*_STARTED, "long", "slow"))]
        config.hook.pytest_deselected(items=slow)
        deselected = set(slow)
        items[:] = [item for item in items if item not in deselected]
    if hasattr(config, "workerinput"):
        _put_slow_files_first(items)


def _put_slow_files_first(items: list[pytest.Item]) -> None:
    """Sort the files by their likely time, so that no process ends with a long one while the others have nothing."""
    seconds: defaultdict[Path, float] = defaultdict(float)
    for item in items:
        marks = list(item.iter_markers())
        by_marks = [_SECONDS[mark.name] for mark in marks if mark.name in _SECONDS]
        limits = [mark.args[0] * _SHARE for mark in marks if mark.name == "timeout"]
        seconds[item.path] += max([0.2, *by_marks, *limits])
    items.sort(key=lambda item: -seconds[item.path])


def pytest_collection_finish() -> None:
    """Spare the garbage collector the million objects of the imports, which stay: a fifth of the time of the tests.

    It also looks at what the tests make less often: another twentieth.
    """
    gc.freeze()
    gc.set_threshold(_GARBAGE)
    gc.enable()


def pytest_unconfigure() -> None:
    """Undo that at the exit of the process, since libraries expect it there; pytest collects twice before."""
    atexit.register(gc.unfreeze)


def _starts(item: pytest.Item) -> set[str]:
    marks = {_STARTED_BY_FIXTURE[name] for name in getattr(item, "fixturenames", ()) if name in _STARTED_BY_FIXTURE}
    if not set(_NEVER_FAST).isdisjoint(item.nodeid.partition("::")[0].split("/")):
        marks.add("process")
    callspec = getattr(item, "callspec", None)
    if callspec is not None and "postgres" in callspec.params.values():
        marks.add("postgres")
    return marks


@pytest.fixture(autouse=True)
def _nothing_unmarked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a test fail that starts a process or a listener without the mark for it."""
    if any(request.node.get_closest_marker(mark) for mark in _STARTED):
        return

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("this test starts a process or listens on a port: mark it `process` or `server`")

    if (decoding := sys.modules.get("wcl_core.data.decoding")) is not None:
        monkeypatch.setattr(decoding, "_ALONE_SECONDS", float("inf"))  # on a busy machine it would start processes
    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(socket.socket, "listen", refuse)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Yield the URL of a real Redis on a free port, without persistence."""
    with servers.redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def bucket_server() -> Iterator[str]:
    """Yield the address of a real S3 server with a bucket `wcl`, on a free port."""
    with servers.bucket_server() as url:
        yield url


@pytest.fixture
def bucket(bucket_server: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the settings of an own prefix of a bucket; the credentials are in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "writes")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-bucket")
    return {"WCL_STORAGE_URL": f"s3://wcl/{secrets.token_hex(8)}/files", "WCL_STORAGE_ENDPOINT": bucket_server}


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Yield the URL of the maintenance database of a real PostgreSQL on a free port."""
    with servers.postgres() as url:
        yield url


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: str) -> Database:
    """Return one migrated database that tests use in turn; clearing it is several times faster than a new one."""
    return _migrated(_create(postgres_server))


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Database:
    """Return a migrated database whose file tests copy."""
    return _migrated(f"sqlite:///{tmp_path_factory.mktemp('template') / 'wcl.sqlite3'}")


@pytest.fixture(scope="session")
def sqlite_template(migrated_sqlite: Database) -> Path:
    """Return a migrated file; tests copy it."""
    return Path(str(migrated_sqlite.engine.url.database))


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """Yield a new database without tables."""
    url = _create(postgres_server)
    yield url
    _administer(postgres_server, f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a database without migrations, in both modes."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'folder' / 'wcl.sqlite3'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def sqlite_database(migrated_sqlite: Database, sqlite_template: Path, tmp_path: Path) -> Iterator[Database]:
    """Yield a migrated SQLite file."""
    path = tmp_path / "wcl.sqlite3"
    shutil.copyfile(sqlite_template, path)
    database = servers.without_syncs(Database(f"sqlite:///{path}"))
    _share_statements(migrated_sqlite, database)
    yield database
    database.dispose()


@pytest.fixture
def postgres_database(migrated_postgres: Database) -> Iterator[Database]:
    """Yield a migrated PostgreSQL database without rows."""
    database = Database(migrated_postgres.url)
    _share_statements(migrated_postgres, database)
    servers.clear(database)
    yield database
    database.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Database:
    """Return a migrated database without rows, in both modes."""
    opened: Database = request.getfixturevalue(f"{request.param}_database")
    return opened


def _migrated(url: str) -> Database:
    database = Database(url)
    database.migrate()
    with database.read() as session:
        database_time(session)  # the engine learns its server's version
    database.dispose()
    return database


def _share_statements(first: Database, other: Database) -> None:
    """Let `other` use the statements that `first` has compiled: compiling takes a fifth of a short test's time."""
    for engine in (other.engine, other._reads, other._writes):
        engine.dialect, engine._compiled_cache = first.engine.dialect, first.engine._compiled_cache


def _create(server: str) -> str:
    name = f"test_{next(_NUMBERS)}"
    _administer(server, f"CREATE DATABASE {name}")
    return server.replace("postgresql://", "postgresql+psycopg://", 1).rpartition("/")[0] + f"/{name}"


def _administer(server: str, statement: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(statement)
