"""Runs migrations on the database of the settings, or on the one a caller hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from jobs.database import Database
from jobs.models import Base
from jobs.settings import Settings

_LOCK = 0x57434C  # any number that nobody else takes


def run() -> None:
    """Upgrade, check or compare, in one transaction; two processes at once take turns."""
    database = context.config.attributes.get("database") or Database(Settings().resolved_database_url)
    with database.engine.connect() as raw:
        connection = raw.execution_options(wcl_write=True)
        with connection.begin():
            # Told before the transaction began, Alembic would commit after each migration on SQLite, and another
            # process could come in between.
            context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
            if connection.dialect.name == "postgresql":
                for name in ("lock_timeout", "statement_timeout"):  # a large table takes what it takes
                    connection.execute(text(f"SET LOCAL {name} = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            context.run_migrations()


run()
