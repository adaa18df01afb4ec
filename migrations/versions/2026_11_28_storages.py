"""Storages with an id, workers that cannot take jobs, and checkpoints whose file is missing."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010_storages"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "storages",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("storage_id", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_storages")),
    )
    op.add_column("workers", sa.Column("unable", sa.String(length=64), nullable=True))
    op.add_column("workers", sa.Column("unable_message", sa.Text(), nullable=True))
    op.add_column("checkpoints", sa.Column("missing_at", sa.BigInteger(), nullable=True))
    op.add_column("checkpoints", sa.Column("checked_at", sa.BigInteger(), nullable=True))
