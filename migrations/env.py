"""Runs the migrations on the database of the settings, or on the one that the caller passes."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from jobs.database import Database
from jobs.models import Base
from jobs.settings import read_settings

_LOCK = 0x57434C  # an arbitrary number that identifies this lock


def run() -> None:
    """Upgrade, check or compare the schema in one transaction; concurrent processes take turns."""
    database = context.config.attributes.get("database") or Database(read_settings().resolved_database_url)
    with database.engine.connect() as raw:
        connection = raw.execution_options(wcl_begin="write")
        with connection.begin():
            # If configured before the transaction, Alembic would commit after each migration on SQLite, so that another
            # process could migrate in between.
            context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
            if connection.dialect.name == "postgresql":
                for name in ("lock_timeout", "statement_timeout"):  # a large table may take long
                    connection.execute(text(f"SET LOCAL {name} = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            context.run_migrations()


run()
