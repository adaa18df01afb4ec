"""The index of the search for jobs on SQLite (jobs.search); a server builds that of PostgreSQL."""

from __future__ import annotations

import sqlite3

from alembic import op

revision = "0048_job_search"
down_revision = "0047_delivery_lag"
branch_labels = None
depends_on = None

_FIRST_WITH_SEQUENCES = (3, 34)  # version of SQLite
# The index finds the row of a job by the end of its id, which is random.
_REMOVE = """
    DELETE FROM job_search WHERE id = old.id AND rowid IN (
        SELECT rowid FROM job_search WHERE job_search MATCH
        '"' || substr(old.id, 25, 3) || '" AND "' || substr(old.id, 28, 3) || '" AND "' || substr(old.id, 31, 3) || '"'
    )
"""
_ADD = "INSERT INTO job_search (name, id, dataset_name) VALUES (new.name, new.id, new.dataset_name)"
_TRIGGERS = {
    "INSERT": f"{_ADD};",
    "UPDATE OF name, id, dataset_name": f"{_REMOVE}; {_ADD};",
    "DELETE": f"{_REMOVE};",
}


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name != "sqlite" or not _is_able():
        return
    # Neither the places of sequences nor their number is needed: `jobs.search` reads the texts of the jobs, too.
    connection.exec_driver_sql(
        "CREATE VIRTUAL TABLE job_search USING fts5 "
        "(name, id, dataset_name, tokenize = 'trigram', detail = 'none', columnsize = 0)"
    )
    connection.exec_driver_sql(
        "INSERT INTO job_search (name, id, dataset_name) SELECT name, id, dataset_name FROM jobs ORDER BY id"
    )
    for change, statements in _TRIGGERS.items():
        name = f"job_search_{change.split()[0].lower()}"
        connection.exec_driver_sql(f"CREATE TRIGGER {name} AFTER {change} ON jobs BEGIN {statements} END")


def _is_able() -> bool:
    """Return whether this SQLite has full-text search with sequences of three characters."""
    with sqlite3.connect(":memory:") as connection:
        options = {name for (name,) in connection.execute("PRAGMA compile_options")}
    return sqlite3.sqlite_version_info >= _FIRST_WITH_SEQUENCES and "ENABLE_FTS5" in options
