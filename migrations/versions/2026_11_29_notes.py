"""Stars and notes of jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0029_notes"
down_revision = "0028_kept_devices"
branch_labels = None
depends_on = None

_STARRED = sa.text("starred_at IS NOT NULL")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("starred_at", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("note", sa.Text(), nullable=True))
    op.create_index("ix_jobs_starred", "jobs", ["id"], sqlite_where=_STARRED, postgresql_where=_STARRED)
