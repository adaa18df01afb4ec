"""The schema of the database: whether this version of the service can use it, and its migrations.

A database that cannot be used is damaged, of another program, or of a newer version.  Waiting ends none of these, so
they are no outages: each is refused in one sentence that says what to do.  `jobs.storage_id` refuses a new database
beside the files of another one.
"""

from __future__ import annotations

import glob
import os
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy import Connection, column, inspect, select, table
from sqlalchemy.exc import DBAPIError

from jobs.errors import JobsError
from jobs.faults import Fault, describe, fault_of
from wcl_core.files import MIN_FREE_BYTES, free_bytes
from wcl_core.text import counted

if TYPE_CHECKING:
    from jobs.database import Database
    from jobs.settings import Settings

_OURS = frozenset({"jobs", "attempts"})  # in every version
_VERSION_TABLE = "alembic_version"
_REVISION = re.compile(r'^revision = "(.+)"\ndown_revision = (?:"(.+)"|None)$', re.MULTILINE)
_NEW = "`python -m jobs migrate` makes a new one"
_USE_BY_PROJECT = "0052_use_by_project"  # of revisions of 29 and 30 November, in no release
_MIN_BYTES = 512  # SQLite takes a shorter file for a new one
_CHECK_SECONDS = 5.0  # a reader of SQLite holds up its writers


class Unusable(JobsError):  # noqa: N818 (named as the state of the database)
    """The database cannot be used; the message names the remedy."""

    status_code = 503
    title = "Database unusable"


class _State(Enum):
    NEW = "no tables"
    OLDER = "an older schema"
    CURRENT = "this version's schema"
    NEWER = "a newer schema"
    FOREIGN = "tables of another program"


def check(database: Database) -> None:
    """Check that the database is whole and that this version can use or upgrade it.

    The check of a large SQLite file ends after a few seconds, with the parts that it has read.

    Raises:
        Unusable: it cannot be used.
        DBAPIError: the database does not respond.
    """
    file = _file_of(database)
    num_bytes = file.stat().st_size if file is not None and file.exists() else 0
    if 0 < num_bytes < _MIN_BYTES:
        raise Unusable(f"{file}: {Fault.DAMAGED.sentence} (it has {num_bytes} bytes)")
    if file is not None and not num_bytes:
        return
    try:
        with database.engine.connect() as connection:
            if file is not None:
                _quick_check(connection)
            state, revision = _state(connection)
    except DBAPIError as error:
        if fault_of(error) is not Fault.DAMAGED:
            raise
        raise Unusable(f"{_name_of(database)}: {describe(error)}") from error
    if state in (_State.NEWER, _State.FOREIGN):
        raise Unusable(_refusal(database, state, revision))


def absence(settings: Settings) -> str | None:
    """Return a sentence if the settings name a SQLite database that is not there; None otherwise.

    A command that only reads asks this first: SQLite would make an empty database, in which all is well.
    """
    file = settings.sqlite_file
    if file is None or (file.exists() and file.stat().st_size):
        return None
    if settings.database_url is not None:
        return f"there is no database {file}, which WCL_DATABASE_URL names; {_NEW}"
    if "data_dir" in settings.model_fields_set:
        place, unset = str(settings.data_dir), "WCL_DATA_DIR names that folder, and WCL_DATABASE_URL is not set"
    else:
        place = f"./{settings.data_dir}"
        unset = "WCL_DATABASE_URL and WCL_DATA_DIR are not set"
    return f"there is no database in {place}; {unset}: set them as the service has them; {_NEW}"


def upgrade(database: Database, say: Callable[[str], None] = lambda _text: None) -> None:
    """Upgrade the schema to the newest version; several processes may call this at once.

    A SQLite file is copied before its upgrade.  All migrations are one transaction, so a stop leaves the old schema.

    Args:
        database: of any version.
        say: gets a line on each step; nothing if the schema is the newest one.

    Raises:
        Unusable, DBAPIError: as `check`; also if there is no room for the copy.
    """
    check(database)
    file = _file_of(database)
    if file is None or (file.exists() and file.stat().st_size):
        with database.engine.connect() as connection:
            state, before = _state(connection)
        if state is _State.CURRENT:
            return
        if state is _State.OLDER and before is not None:
            steps = _following(before)
            follow = f"{counted(len(steps), 'migration')} {'follows' if len(steps) == 1 else 'follow'}"
            say(f"{_name_of(database)}: schema {before}; {follow}: {', '.join(steps)}")
            advice = "no copy is made here; `wcl backup` of the former version makes one"
            say(advice if file is None else f"kept: {_keep_copy(file, before)}")
            if before == _USE_BY_PROJECT:
                say("restart servers and workers of the former version at once: until then the ends of runs wait")
    from alembic import command  # its import takes longer than this whole function without a migration

    config = _alembic_config()
    config.attributes["database"] = database
    command.upgrade(config, "head")


def _keep_copy(file: Path, before: str) -> Path:
    """Copy a SQLite file before its upgrade, and return the place; older copies are removed.

    Another process may upgrade the file meanwhile: then its own copy is the one that stays.

    Raises:
        Unusable: the copy cannot be made.
    """
    from jobs.backups import BackupError, copy_sqlite  # it imports this module

    place, new = file.with_name(f"{file.name}.{before}"), file.with_name(f".{file.name}.{uuid4().hex}")
    try:
        copy_sqlite(file, new)
        with closing(sqlite3.connect(f"{new.absolute().as_uri()}?mode=ro", uri=True)) as copy:
            (its,) = copy.execute(f"SELECT version_num FROM {_VERSION_TABLE}").fetchone()  # noqa: S608 (a constant)
        if its == before:
            new.replace(place)
    except (BackupError, OSError) as error:
        raise Unusable(
            f"{file} is not upgraded, because it cannot be copied before: {error}. Make room beside it for a copy"
        ) from error
    finally:
        new.unlink(missing_ok=True)
    for older in file.parent.glob(f"{glob.escape(file.name)}.[0-9][0-9][0-9][0-9]_*"):
        if older != place:
            older.unlink()
    return place


def _following(revision: str) -> list[str]:
    """Return the revisions after one, oldest first."""
    next_of = {before: each for each, before in _revisions().items()}
    steps: list[str] = []
    current: str | None = revision
    while (current := next_of.get(current)) is not None:
        steps.append(current)
    return steps


def problem(database: Database) -> str | None:
    """Return why this version cannot work with the schema as it is, or None; raise if the database does not respond."""
    try:
        return awaited(database)
    except Unusable as error:
        return str(error)


def write_problem(database: Database) -> str | None:
    """Return why the database takes no changes, a sentence without a full stop; None if it does.

    Raises:
        DBAPIError: the database does not respond.
    """
    file = _file_of(database)
    if file is None:
        with database.engine.connect() as connection:
            is_read_only = connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "on"
        return f"{_name_of(database)} takes no changes: it is read-only" if is_read_only else None
    if not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)):
        return "the database takes no changes: its file or folder is read-only"
    if free_bytes(file.parent) < MIN_FREE_BYTES:
        return "the database takes no changes: its disk is full"
    return None


def awaited(database: Database) -> str | None:
    """Return the upgrade of the schema that this version waits for; None if the schema is this version's.

    Raises:
        Unusable: no upgrade makes it this version's.
        DBAPIError: the database does not respond.
    """
    with database.engine.connect() as connection:
        state, revision = _state(connection)
    if state is _State.CURRENT:
        return None
    if state in (_State.NEW, _State.OLDER):
        its = f"{state.value} ({revision})" if revision else state.value
        return f"the database has {its}, and this version needs {newest()}; run `python -m jobs migrate`"
    raise Unusable(_refusal(database, state, revision))


def revision(connection: Connection) -> str | None:
    """Return the schema's revision; None without one."""
    if not inspect(connection).has_table(_VERSION_TABLE):
        return None
    return connection.execute(select(column("version_num")).select_from(table(_VERSION_TABLE))).scalars().first()


def is_supported(revision: str) -> bool:
    """Return whether this version can use or upgrade a schema of this revision."""
    return revision in _revisions()


def _state(connection: Connection) -> tuple[_State, str | None]:
    its = revision(connection)
    if its == newest():
        return _State.CURRENT, its
    names = set(inspect(connection).get_table_names())
    if its is None:
        foreign = names if connection.dialect.name == "sqlite" else names & _OURS
        return (_State.FOREIGN if foreign - {_VERSION_TABLE} else _State.NEW), its
    if its in _revisions():
        return _State.OLDER, its
    return (_State.NEWER if names >= _OURS else _State.FOREIGN), its


def _refusal(database: Database, state: _State, revision: str | None) -> str:
    if state is _State.FOREIGN:
        return f"{_name_of(database)} holds tables of another program. Name another database (WCL_DATABASE_URL)."
    return (
        f"{_name_of(database)} was upgraded by a newer version of this service: its schema is {revision}, and this "
        f"version knows {newest()}. Install the newer version, or restore the backup from before the upgrade."
    )


def _quick_check(connection: Connection) -> None:
    """Read a SQLite file for a few seconds; raise as SQLite does if it is damaged."""
    raw: Any = connection.connection.driver_connection
    deadline = time.monotonic() + _CHECK_SECONDS
    raw.set_progress_handler(lambda: time.monotonic() > deadline, 100_000)
    try:
        result = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    except DBAPIError as error:
        if fault_of(error) is not Fault.TIMEOUT:
            raise
        return
    finally:
        raw.set_progress_handler(None, 0)
    if result != "ok":
        raise Unusable(f"{connection.engine.url.database}: {Fault.DAMAGED.sentence} ({result.splitlines()[0]})")


def _file_of(database: Database) -> Path | None:
    """Return the file of a SQLite database; None for PostgreSQL."""
    url = database.engine.url
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def _name_of(database: Database) -> str:
    """Return the file of a SQLite database, or the name of another one, without user and password."""
    url = database.engine.url
    return str(_file_of(database) or f"the database {url.database} on {url.host or 'this machine'}")


def newest() -> str:
    """Return the revision of this version's schema."""
    (newest,) = _revisions().keys() - _revisions().values()
    return newest


@cache
def _revisions() -> dict[str, str | None]:
    """Return all revisions, each with the one before it; alembic takes far longer to list them."""
    import migrations

    texts = [path.read_text() for path in (Path(migrations.__file__).parent / "versions").glob("*.py")]
    return {match[1]: match[2] for text in texts if (match := _REVISION.search(text))}


def _alembic_config() -> Any:
    from alembic.config import Config

    import migrations

    config = Config()
    script_location = str(Path(migrations.__file__).parent)
    config.set_main_option("script_location", script_location.replace("%", "%%"))  # a % starts a substitution
    return config
