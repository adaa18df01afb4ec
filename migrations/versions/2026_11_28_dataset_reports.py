"""Reports on datasets, and the datasets that a worker is still reading or has refused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013_dataset_reports"
down_revision = "0012_clocks"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("datasets", sa.Column("report", sa.JSON(), nullable=True))
    op.add_column("workers", sa.Column("pending_datasets", sa.JSON(), nullable=True))
    op.add_column("workers", sa.Column("refused_datasets", sa.JSON(), nullable=True))
