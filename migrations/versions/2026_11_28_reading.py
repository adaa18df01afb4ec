"""Datasets that are being read: the share that is read, and requests to read a folder again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015_reading"
down_revision = "0014_devices"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("dataset_shares", sa.JSON(), nullable=True))
    op.add_column("datasets", sa.Column("reads_requested", sa.Integer(), nullable=False, server_default=sa.text("0")))
