"""The job that a worker keeps its free devices for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0028_kept_devices"
down_revision = "0027_archived_jobs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("kept_for", sa.String(36), nullable=True))
