"""Dumps of a database: a copy of a SQLite file by its backup interface, or an archive of pg_dump.

Both are one consistent state while other processes write.  `dumped` also yields a connection that sees exactly this
state, so the list of files fits the dump.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from sqlalchemy import Connection, inspect, make_url, text
from sqlalchemy.exc import DBAPIError

from jobs import search
from jobs.backups.backup_folder import BackupError, Dump
from jobs.database import Database
from jobs.models import Base
from jobs.storage import sha256_of
from wcl_core.files import sync_folder

_WAIT_SECONDS = 60.0  # for a writer of SQLite
_WHERE = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/opt/postgresql*/bin", "/opt/homebrew/opt/*/bin")
_MAJOR: Final = re.compile(r"\(PostgreSQL\) (\d+)")
_SEQUENCE = "queue_places"
_LAST_CHARACTERS = 300


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a SQLite database while others write; the copy gets its name once it is whole.

    Writers wait while the pages are copied: in several steps, each of their commits would begin the copy anew.

    Raises:
        OSError: the disk is full or read-only; nothing is left.
    """
    beside = target.with_name(f".{target.name}.part")
    try:
        # Read-write: a journal that a crash left could not be rolled back otherwise.
        address = f"{source.absolute().as_uri()}?mode=rw"
        with (
            closing(sqlite3.connect(address, uri=True, timeout=_WAIT_SECONDS)) as read,
            closing(sqlite3.connect(beside)) as written,
        ):
            read.backup(written)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(target)
        sync_folder(target.parent)
    except sqlite3.Error as error:
        raise BackupError(f"{source} cannot be copied to {target}: {error}") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


@contextmanager
def dumped(database: Database, folder: Path) -> Iterator[tuple[Dump, Connection]]:
    """Write a dump into a folder; yield its facts, and a connection that sees the same state.

    Raises:
        BackupError: the programs of PostgreSQL are absent or too old, or fail.
    """
    if (file := sqlite_file(database)) is not None:
        target = folder / "database.sqlite3"
        copy_sqlite(file, target)
        facts = _facts(target, "sqlite", f"SQLite {sqlite3.sqlite_version}")
        copy = Database(f"sqlite:///{target}")
        try:
            with copy.engine.connect() as connection:
                yield facts, connection
        finally:
            copy.dispose()
        return
    target = folder / "database.pgdump"
    with database.engine.connect() as raw:
        connection = raw.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            # The snapshot lasts as long as this transaction, which is idle meanwhile.
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            snapshot = connection.execute(text("SELECT pg_export_snapshot()")).scalar_one()
            program = find_program("pg_dump", _server_major(connection))
            tables = [f"--table={name}" for name in _own_tables(connection)]
            words = ["--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}", f"--file={target}"]
            _run(program, [*words, *tables, f"--table={_SEQUENCE}"], database.url)
            yield _facts(target, "postgresql", program.version, program.major), connection


def load(database: Database, dump: Path, facts: Dump) -> None:
    """Write a dump into an empty database, whole or not at all.

    Raises:
        BackupError: the database is of another kind, or the programs of PostgreSQL are absent, too old, or fail.
    """
    kind = database.engine.dialect.name
    if kind != facts.kind:
        raise BackupError(
            f"the backup is of a {facts.kind} database, and WCL_DATABASE_URL names a {kind} database; "
            f"name an empty {facts.kind} database"
        )
    if (file := sqlite_file(database)) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        database.dispose()
        copy_sqlite(dump, file)
        return
    with database.engine.connect() as connection:
        server = _server_major(connection)
    program = find_program("pg_restore", max(server, facts.major))
    words = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"]
    with tempfile.NamedTemporaryFile("w", prefix="wcl-restore-") as chosen:
        chosen.write(_entries_to_load(program, dump))
        chosen.flush()
        _run(program, [*words, f"--use-list={chosen.name}", str(dump)], database.url)


def _entries_to_load(program: Program, dump: Path) -> str:
    """Return the list of a dump without the index of searches: it needs an extension, and a server builds it again."""
    listed = _finished([program.path, "--list", dump])
    return "".join(line for line in listed.splitlines(keepends=True) if f" {search.INDEX} " not in line)


def is_empty(database: Database) -> bool:
    """Return whether a database has no table of the service; a SQLite file that is absent has none.

    Raises:
        DBAPIError: PostgreSQL does not respond.
    """
    file = sqlite_file(database)
    if file is not None and not (file.exists() and file.stat().st_size):
        return True
    try:
        with database.engine.connect() as connection:
            return not _own_tables(connection)
    except DBAPIError:
        if file is None:
            raise
        return False  # it is damaged


def sqlite_file(database: Database) -> Path | None:
    """Return the file of a SQLite database; None for PostgreSQL."""
    url = database.engine.url
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


class Program(NamedTuple):
    """A client program of PostgreSQL."""

    major: int
    version: str
    path: Path


def find_program(name: str, major: int) -> Program:
    """Return the lowest version of a program that is not older than a server's version; newer ones read older servers.

    Raises:
        BackupError: there is none; the message says what to install.
    """
    places = [Path(path)] if (path := shutil.which(name)) else []
    for pattern in _WHERE:
        places += [folder / name for folder in Path("/").glob(pattern.lstrip("/")) if (folder / name).is_file()]
    programs = [program for place in places if (program := _program(place)) is not None]
    if fitting := [program for program in programs if program.major >= major]:
        return min(fitting)
    others = ", ".join(sorted({str(program.major) for program in programs}))
    present = f"; only version {others} is here" if others else ""
    raise BackupError(
        f"this database needs {name} of PostgreSQL {major} or later{present}. Install the client programs of "
        f"PostgreSQL {major}, for example with `apt-get install postgresql-client-{major}`, or put their "
        "folder on the PATH"
    )


def _program(path: Path) -> Program | None:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _MAJOR.search(done.stdout)
    return Program(int(match[1]), done.stdout.strip(), path) if match else None


def _run(program: Program, words: list[str], url: str) -> None:
    """Run a program on a database; its password is in the environment, where other users do not see it."""
    address = make_url(url).difference_update_query(["prepare_threshold"]).set(drivername="postgresql")
    environment = dict(os.environ)
    if address.password is not None:
        environment["PGPASSWORD"] = address.password
    address = address._replace(password=None)
    name = address.render_as_string(hide_password=False)
    _finished([program.path, f"--dbname={name}", "--no-password", *words], environment)


def _finished(words: Sequence[str | Path], environment: dict[str, str] | None = None) -> str:
    """Return what a program writes.

    Raises:
        BackupError: it failed.
    """
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it gives no reason"]
        raise BackupError(f"{Path(words[0]).name} failed: {lines[0][:_LAST_CHARACTERS]}")
    return done.stdout


def _server_major(connection: Connection) -> int:
    number = connection.execute(text("SHOW server_version_num")).scalar_one()
    return int(number) // 10_000


def _own_tables(connection: Connection) -> list[str]:
    """Return the tables of the service: another program may have tables in the same database."""
    return sorted(set(inspect(connection).get_table_names()) & {*Base.metadata.tables, "alembic_version"})


def _facts(target: Path, kind: str, version: str, major: int = 0) -> Dump:
    size = target.stat().st_size
    facts = {"name": target.name, "sha256": sha256_of(target), "size": size, "made_with": version, "major": major}
    return Dump.model_validate({"kind": kind, **facts})
