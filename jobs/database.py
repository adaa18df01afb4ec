"""Access to SQLite and PostgreSQL: engines, short transactions, the database's clock, ids, migrations.

SQLite: full synchronisation; the rollback journal, because WAL before 3.51.3 can lose a commit; writers lock at once
(`BEGIN IMMEDIATE`); readers fetch everything and close.  No session is held during a sleep, a stream or a subprocess.
A callable passed to `write` may run more than once.
"""

from __future__ import annotations

import copy
import json
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    Engine,
    Row,
    Select,
    Text,
    TypeDecorator,
    cast,
    column,
    create_engine,
    event,
    func,
    literal,
    make_url,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

from jobs import schema
from jobs.faults import Fault, fault_of
from jobs.faults import is_outage as is_outage  # for callers that catch what this module raises
from wcl_core.failpoints import failpoint

T = TypeVar("T")

_BUSY_TIMEOUT_MS = 5_000
_MAX_TRIES = 8
_DEFAULT_CONNECTIONS = 5
_CONNECTION_WAIT_SECONDS = 10.0
DEFAULT_PROJECT = "00000000-0000-7000-8000-000000000001"
_ACTOR = "actor"  # in `Session.info`
_PROJECT = "project"  # in `Session.info`
_WAL_SAFE_FROM = (3, 51, 3)
# A network that drops packets would block a thread for hours; the URL can override these.
_POSTGRES_CONNECTION = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
# A process that is stopped inside a transaction would keep its locks, and block every reconciler.  Each transaction
# sets them: behind a pooler such as PgBouncer, the settings of a session would reach other programs.
_POSTGRES_TRANSACTION = {
    "idle_in_transaction_session_timeout": "30s",
    "lock_timeout": "10s",
    "statement_timeout": "60s",
}


class JobsSession(Session):
    """The sessions of `Database`: those whose statements `jobs.models` restricts to visible rows."""


class now_ms(FunctionElement[int]):  # noqa: N801 (a SQL function)
    """The database's own time in integer milliseconds since 1970, UTC."""

    type = BigInteger()
    inherit_cache = True


@compiles(now_ms, "sqlite")
def _sqlite_now(element: now_ms, compiler: Any, **options: Any) -> str:
    del element, compiler, options  # unixepoch('subsec') needs SQLite 3.42
    return "CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER)"


@compiles(now_ms, "postgresql")
def _postgresql_now(element: now_ms, compiler: Any, **options: Any) -> str:
    del element, compiler, options  # now() would be the transaction's start
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


class queue_place(FunctionElement[int]):  # noqa: N801
    """The next place in the queue of jobs: a number that the database counts up."""

    type = BigInteger()
    inherit_cache = True


@compiles(queue_place, "sqlite")
def _sqlite_queue_place(element: queue_place, compiler: Any, **options: Any) -> str:
    del element, compiler, options  # SQLite has no sequences; its writers take turns
    return "(SELECT coalesce(max(queue_place), 0) + 1 FROM jobs)"


@compiles(queue_place, "postgresql")
def _postgresql_queue_place(element: queue_place, compiler: Any, **options: Any) -> str:
    del element, compiler, options
    return "nextval('queue_places')"


def queue_places(session: Session, count: int) -> tuple[list[int], int]:
    """Return places for jobs that one statement adds, in their order, and the database's time."""
    if session.get_bind().dialect.name == "postgresql":
        rows = session.execute(select(queue_place(), now_ms()).select_from(func.generate_series(1, count))).all()
        return sorted(place for place, _ in rows), rows[0][1]
    first, now = session.execute(select(queue_place(), now_ms())).one()
    return list(range(first, first + count)), now


def database_time(session: Session) -> int:
    """Return the database's time in milliseconds, for ages of times that the database stored."""
    return session.execute(select(now_ms())).scalar_one()


def add_rows(session: Session, tables: Mapping[type[Any], Sequence[dict[str, Any]]], *returned: Any) -> Any:
    """Add rows to some tables, and return the result with the `returned` columns of the first table.

    On PostgreSQL this is one statement, whose length does not depend on the number of rows: the rows are one parameter,
    so neither the client nor the server parses a list of values, or a statement for each row.

    Args:
        session: a writing transaction.
        tables: rows by model, in the order in which SQLite adds them.  The rows of a table have the same columns; the
            others get their defaults.
        *returned: columns of the first table, which then has one row.
    """
    filled = [(model.__table__, rows) for model, rows in tables.items() if rows]
    if session.get_bind().dialect.name != "postgresql":
        (table, rows), *rest = filled
        statement = sqlite.insert(table)
        result = session.execute(statement.returning(*returned) if returned else statement, rows)
        for table, rows in rest:
            session.execute(sqlite.insert(table), rows)
        return result
    first, *others = (_from_json(session, table, rows) for table, rows in filled)
    statement = first.add_cte(*(other.cte(f"other_{place}") for place, other in enumerate(others)))
    return session.execute(statement.returning(*returned) if returned else statement)


def _from_json(session: Session, table: Any, rows: Sequence[dict[str, Any]]) -> Any:
    """Return the INSERT of PostgreSQL whose rows are one parameter."""
    names = list(rows[0])
    columns = [table.c[name] for name in names]
    dialect = session.get_bind().dialect
    encoders = [_encoder(each.type, dialect) for each in columns]
    values = [{name: encode(row[name]) for name, encode in zip(names, encoders, strict=True)} for row in rows]
    kinds = [column(each.name, Text if _is_json(each.type) else each.type) for each in columns]
    source = func.json_to_recordset(cast(literal(json.dumps(values), Text), JSON)).table_valued(
        *kinds, name=f"new_{table.name}"
    )
    source = source.render_derived(with_types=True)
    chosen = [cast(source.c[each.name], JSON) if _is_json(each.type) else source.c[each.name] for each in columns]
    others = [each for each in table.columns if each.default is not None and each.name not in names]
    defaults = [literal(each.default.arg, each.type) if each.default.is_scalar else each.default.arg for each in others]
    names += [each.name for each in others]
    return postgresql.insert(table).from_select(names, select(*chosen, *defaults), include_defaults=False)


def _is_json(kind: Any) -> bool:
    return isinstance(kind.impl if isinstance(kind, TypeDecorator) else kind, JSON)


def _encoder(kind: Any, dialect: Any) -> Callable[[Any], Any]:
    """Return a function that gives the JSON of a value; that of a column of JSON is a text, which may hold any text."""

    def encode(value: Any) -> Any:
        value = kind.process_bind_param(value, dialect) if isinstance(kind, TypeDecorator) else value
        return json.dumps(value) if value is not None and _is_json(kind) else value

    return encode


def insert(session: Session, table: type[Any]) -> Any:
    """Return the INSERT of the database's dialect, which has ON CONFLICT."""
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    return dialect.insert(table)


def new_id() -> str:
    """Return a UUIDv7 (RFC 9562): 48 bits of Unix milliseconds and 12 of their fraction, so that lists sort by age.

    The times are those of the calling process, so no decision may depend on the order of ids.
    """
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | (rest * 4096 // 1_000_000) << 64
    value |= 0x2 << 62 | int.from_bytes(os.urandom(8), "big") >> 2
    return str(UUID(int=value))


class Signal(Enum):
    """A change that others wait for: `Database.on` calls its listeners right after the commit."""

    DUE = "due"  # a job is queued
    MET = "met"  # a job has ended or has a checkpoint: the needs of other jobs may be met


def signal(session: Session, name: Signal) -> None:
    """Mark a transaction."""
    session.info.setdefault(Signal, set()).add(name)


def actor_of(session: Session) -> object:
    """Return whom the database of this session acts for (`Database.acting_for`); None for the service itself."""
    return session.info.get(_ACTOR)


def project_of(session: Session) -> str | None:
    """Return the id of the project whose rows this session sees; None if it sees those of all (jobs.models)."""
    project: str | None = session.info.get(_PROJECT)
    return project


@contextmanager
def within(session: Session, project_id: str | None) -> Iterator[None]:
    """Let a session see the rows of another project for some statements; None: of all projects."""
    before = session.info.get(_PROJECT)
    session.info[_PROJECT] = project_id
    try:
        yield
    finally:
        session.info[_PROJECT] = before


class Database:
    """Short reads and retried writes over one engine.

    Args:
        url: SQLAlchemy URL; `sqlite:///file` or `postgresql+psycopg://…`.
        connections: the most connections to PostgreSQL that this process opens.  A caller waits for a free one, for at
            most 10 s.
    """

    def __init__(self, url: str, connections: int = _DEFAULT_CONNECTIONS) -> None:
        self.url = url
        self.engine = _sqlite_engine(url) if url.startswith("sqlite") else _postgres_engine(url, connections)
        self._reads = self.engine.execution_options(wcl_begin="read")
        self._writes = self.engine.execution_options(wcl_begin="write")
        self._single_reads = self.engine.execution_options(wcl_begin="none")
        self._listeners: list[tuple[Signal, Callable[[], None]]] = []
        self._actor: object = None

    def acting_for(self, actor: object) -> Database:
        """Return this database for the requests of one actor: `actor_of` of its sessions returns the actor.

        The sessions see the rows of the actor's project only, if it has an attribute `project_id` that names one.
        """
        database = copy.copy(self)
        database._actor = actor
        return database

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a session for a few quick queries that see one snapshot; it commits nothing."""
        with _begun(self._reads) as connection, self._session(connection) as session:
            yield session

    def read_row(self, statement: Select[Any]) -> Row[Any] | None:
        """Return the row of one SELECT, or None: one message to the database and one back."""
        return self.read_once(lambda session: session.connection().execute(statement).one_or_none())

    def read_once(self, read: Callable[[Session], T]) -> T:
        """Return the result of a read of one SELECT: one message to the database and one back."""
        for may_be_stale in (True, False):
            try:
                with _begun(self._single_reads) as connection, self._session(connection) as session:
                    return read(session)
            except DBAPIError as error:
                if not (error.connection_invalidated and may_be_stale):
                    raise
        raise AssertionError("unreachable")

    def write(self, change: Callable[[Session], T]) -> T:
        """Run `change` in one transaction and commit it.

        The change runs again if the database is busy or reports a conflict; any other error is raised.
        """
        for attempt in range(1, _MAX_TRIES + 1):
            try:
                with _begun(self._writes) as connection, self._session(connection) as session:
                    result = change(session)
                    failpoint("commit.before", change, _lost_connection)
                    session.commit()
                    failpoint("commit.after", change, _lost_connection)
                self._call_listeners(session)
                return result
            except DBAPIError as error:
                if attempt == _MAX_TRIES or fault_of(error) is not Fault.BUSY:
                    raise
            time.sleep(random.uniform(0, 0.02 * 2**attempt))
        raise AssertionError("unreachable")

    def _session(self, connection: Connection) -> JobsSession:
        """Return a session that commits or ends the transaction of a connection."""
        info = {_ACTOR: self._actor, _PROJECT: getattr(self._actor, "project_id", None)}
        return JobsSession(connection, expire_on_commit=False, join_transaction_mode="control_fully", info=info)

    def on(self, signal: Signal, act: Callable[[], None]) -> None:
        """Call `act` after each commit of this process that carries the signal, on the thread of the writer.

        `act` must return at once and raise nothing.
        """
        self._listeners.append((signal, act))

    def _call_listeners(self, session: Session) -> None:
        signals = session.info.get(Signal, ())
        for signal, act in self._listeners:
            if signal in signals:
                act()

    def changes(self) -> Changes | None:
        """Return a function that tells whether any process has written since its last call; None for PostgreSQL.

        The function reads one number, and takes 10 us.  Only one thread may call it.
        """
        file = self.engine.url.database if self.url.startswith("sqlite") else None
        return None if file in (None, "", ":memory:") else Changes(Path(str(file)))

    def migrate(self, say: Callable[[str], None] = lambda _text: None) -> None:
        """Upgrade the schema to the newest version, as `schema.upgrade`; several processes may call this at once.

        Raises:
            Unusable: its folder cannot be made, or it is damaged, of another program,
                or of a newer version of this service.
        """
        if self.url.startswith("sqlite") and (file := self.engine.url.database):
            try:
                Path(file).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = error.strerror or str(error)
                raise schema.Unusable(f"the folder of the database {file} cannot be made: {reason}") from error
        schema.upgrade(self, say)

    def is_migrated(self) -> bool:
        """Return whether the schema is at the newest version; raise if the database does not respond."""
        return schema.problem(self) is None

    def place(self) -> str | None:
        """Return inode and path of the SQLite file, which tell it from its copies; None for other databases."""
        file = self.engine.url.database if self.url.startswith("sqlite") else None
        if file in (None, "", ":memory:"):
            return None
        path = Path(str(file)).resolve()
        return f"{path.stat().st_ino} {path}"

    def dispose(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()


class Changes:
    """A connection of its own: a connection does not count its own commits as changes.

    Attributes:
        is_busy: whether a writer was at work at the last call, so that a change may be hidden from it.
    """

    def __init__(self, file: Path) -> None:
        self.is_busy = False
        self._address = f"{file.absolute().as_uri()}?mode=rw"
        self._connection: sqlite3.Connection | None = None
        self._version: int | None = None

    def __call__(self) -> bool:
        try:
            if self._connection is None:
                self._connection = sqlite3.connect(self._address, uri=True, timeout=0.0, check_same_thread=False)
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:  # a writer is at work, and the next call sees its change
            self.is_busy = True
            return False
        self.is_busy = False
        before, self._version = self._version, version
        return bool(version != before)


def _lost_connection(text: str) -> OperationalError:
    return OperationalError("COMMIT", None, ConnectionError(text))


def _begun(engine: Engine) -> Connection:
    """Return a connection with an open transaction.

    Wait while this process uses all of its connections, or while the server has none to give.  A connection that has
    ended since its last use is replaced: its BEGIN shows that, so no message is spent to test it.

    Raises:
        DBAPIError: no connection was free in time, or the database does not respond.
    """
    deadline = time.monotonic() + _CONNECTION_WAIT_SECONDS
    may_be_stale = True
    while True:
        try:
            connection = engine.connect()
            try:
                connection.begin()
            except BaseException:
                connection.close()
                raise
            return connection
        except PoolTimeout as error:
            raise OperationalError("connect", None, error) from error
        except DBAPIError as error:
            if error.connection_invalidated and may_be_stale:
                may_be_stale = False
                continue
            if fault_of(error) is not Fault.OVERLOADED or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.05, 0.25))


def _postgres_engine(url: str, connections: int) -> Engine:
    address = make_url(url)
    defaults = {name: value for name, value in _POSTGRES_CONNECTION.items() if name not in address.query}
    # Prepared statements belong to one connection of the server, which a pooler changes at each transaction.
    engine = create_engine(
        address.difference_update_query(["prepare_threshold"]),
        isolation_level="AUTOCOMMIT",  # the driver would send a BEGIN of its own
        pool_size=connections,
        max_overflow=0,
        pool_timeout=_CONNECTION_WAIT_SECONDS,
        connect_args=defaults | {"prepare_threshold": None},
    )
    settings = "; ".join(f"SET LOCAL {name} = '{value}'" for name, value in _POSTGRES_TRANSACTION.items())

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        """Send one message: on a slow network, each one counts."""
        mode = connection.get_execution_options().get("wcl_begin", "write")
        if mode != "none":
            # By default PostgreSQL shows each statement another snapshot.
            isolation = " ISOLATION LEVEL REPEATABLE READ" if mode == "read" else ""
            connection.exec_driver_sql(f"BEGIN{isolation}; {settings}")

    return engine


def _sqlite_engine(url: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, record: Any) -> None:
        del record
        connection.isolation_level = None  # otherwise the driver begins the transaction itself, and too late
        journal = "WAL" if sqlite3.sqlite_version_info >= _WAL_SAFE_FROM else "TRUNCATE"
        for pragma in (f"journal_mode={journal}", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        # A reader that later writes could conflict with a writer, so a writer locks before its first read.
        mode = connection.get_execution_options().get("wcl_begin", "read")
        if mode != "none":
            connection.exec_driver_sql("BEGIN IMMEDIATE" if mode == "write" else "BEGIN")

    @event.listens_for(engine, "reset")
    def reset(connection: sqlite3.Connection, record: Any, state: Any) -> None:
        # A COMMIT that readers have delayed for too long leaves its transaction open, with its locks, and SQLAlchemy
        # takes it for ended.  The next user of the connection could not begin another one.
        del record, state
        connection.rollback()

    return engine
