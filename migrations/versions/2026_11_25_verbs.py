"""Preemption, limits of running time, draining of workers, dependencies on a checkpoint."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("preemptible", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("jobs", sa.Column("max_seconds", sa.Integer(), nullable=True))
    op.add_column("workers", sa.Column("drain_requested_at", sa.BigInteger(), nullable=True))
    op.add_column(
        "dependencies", sa.Column("until", sa.String(length=16), nullable=False, server_default=sa.text("'success'"))
    )
