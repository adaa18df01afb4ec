"""The search for jobs by a part of their name, id or dataset, and the index of it.

The index holds all sequences of three characters: of PostgreSQL by its extension `pg_trgm`, of SQLite by its full-text
search, in a table that triggers keep up to date.  It only makes a search fast: without it, the database reads every
job.  It has no term of one or two characters: these are looked for among the newest jobs only.

A migration builds the index of SQLite.  A server builds that of PostgreSQL in the background, since jobs go on
meanwhile, and since an administrator of the database may have to create the extension first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, Row, Select, and_, column, func, or_, select, table, text
from sqlalchemy.orm import Session

from jobs.models import Job
from wcl_core.protocol import storable

if TYPE_CHECKING:
    from jobs.database import Database

INDEX: Final = "ix_jobs_search"  # of PostgreSQL
TABLE: Final = "job_search"  # of SQLite
_COLUMNS: Final = Job.name, Job.id, Job.dataset_name
_LENGTH: Final = 3
_MOST_SEQUENCES: Final = 32  # of a term; further ones hardly leave out further jobs
# The jobs of SQLite's index are read before they are ordered.  A term of more jobs is one of new jobs, too, and these
# are read in their order.
_MOST_INDEXED: Final = 2_000
MOST_NEWEST: Final = 2_000  # jobs that a term of one or two characters is looked for in

_STATE: Final = text(
    "SELECT to_regclass(:name) IS NOT NULL AS exists, "
    "coalesce((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)), false) AS is_valid, "
    "EXISTS (SELECT FROM pg_stat_progress_create_index WHERE relid = to_regclass('jobs')) AS is_built_now, "
    "EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_trgm') AS is_created, "
    "EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_trgm') AS is_installed, "
    "has_database_privilege(current_database(), 'CREATE') AS may_create, "
    "(SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass('jobs')) AS is_owner"
).bindparams(name=INDEX)
_CREATE_EXTENSION: Final = "CREATE EXTENSION IF NOT EXISTS pg_trgm"
# A search reads the newest entries one after the other, until 256 KB of them are sorted in.
_CREATE_INDEX: Final = (
    f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {INDEX} ON jobs USING gin "
    f"({', '.join(f'{each.name} gin_trgm_ops' for each in _COLUMNS)}) WITH (gin_pending_list_limit = 256)"
)
_SLOW: Final = "searches for a part of a name read every job"


def matches(session: Session, term: str) -> ColumnElement[bool]:
    """Return the condition for a job whose name, id or dataset contains a term, in either case.

    A term of one or two characters is looked for in the newest `MOST_NEWEST` jobs.
    """
    term = storable(term)
    contains = or_(*(each.icontains(term, autoescape=True) for each in _COLUMNS))
    if len(term) < _LENGTH:
        newest = select(Job.id).order_by(Job.id.desc()).limit(MOST_NEWEST).subquery()
        return and_(Job.id.in_(select(newest.c.id)), contains)
    sequences = [term[start : start + _LENGTH] for start in range(len(term) - _LENGTH + 1)][:_MOST_SEQUENCES]
    if session.get_bind().dialect.name != "sqlite" or not _has_table(session):
        return contains  # PostgreSQL itself chooses whether to use the index
    has_all = " AND ".join('"' + each.replace('"', '""') + '"' for each in sequences)
    indexed: Select[Any] = select(column("id")).select_from(table(TABLE)).where(column(TABLE).match(has_all))
    counted = select(func.count()).select_from(indexed.limit(_MOST_INDEXED + 1).subquery())
    return contains if session.execute(counted).scalar_one() > _MOST_INDEXED else and_(Job.id.in_(indexed), contains)


def _has_table(session: Session) -> bool:
    named = text("SELECT 1 FROM sqlite_master WHERE name = :name")
    return session.execute(named, {"name": TABLE}).first() is not None


def build(database: Database) -> None:
    """Build the index of PostgreSQL if it is absent; reads and writes of jobs go on meanwhile.

    Where it cannot be built, `problem` returns the reason.
    """
    if database.engine.dialect.name != "postgresql":
        return
    state = _state(database)
    if state.is_valid or state.is_built_now or _obstacle(state) is not None:
        return
    # Outside of a transaction, as such an index is built.
    with database.engine.connect().execution_options(wcl_begin="none") as connection:
        if not state.is_created:
            connection.exec_driver_sql(_CREATE_EXTENSION)
        if state.exists:  # its building was interrupted
            connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {INDEX}")
        connection.exec_driver_sql(_CREATE_INDEX)


def problem(database: Database) -> str | None:
    """Return why there is no index, a sentence without a full stop; None if there is one, or a server builds it.

    Raises:
        DBAPIError: the database does not respond.
    """
    if database.engine.dialect.name == "postgresql":
        return _obstacle(_state(database))
    with database.read() as session:
        return None if _has_table(session) else f"{_SLOW}: this SQLite has no full-text search for parts of words"


def _state(database: Database) -> Row[Any]:
    return database.read_once(lambda session: session.connection().execute(_STATE).one())


def _obstacle(state: Row[Any]) -> str | None:
    if state.is_valid:
        return None
    if not state.is_installed:
        return f"{_SLOW}: the machine of PostgreSQL lacks the extension pg_trgm (in Debian's postgresql-contrib)"
    if not (state.is_created or state.may_create):
        return f"{_SLOW}: the account may not create the extension; let an administrator run `{_CREATE_EXTENSION}`"
    if not state.is_owner:
        return f"{_SLOW}: only the owner of the table jobs can build their index; run `python -m jobs migrate` as it"
    return None
