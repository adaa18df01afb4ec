"""Archived jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0027_archived_jobs"
down_revision = "0026_deletions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("archived_at", sa.BigInteger(), nullable=True))
