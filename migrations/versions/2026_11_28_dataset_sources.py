"""Datasets that administrators add: their paths, which only workers read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016_dataset_sources"
down_revision = "0015_reading"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "dataset_sources",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("has_labels", sa.Boolean(), nullable=False),
        sa.Column("created_by", sa.String(length=36), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_dataset_sources")),
    )
