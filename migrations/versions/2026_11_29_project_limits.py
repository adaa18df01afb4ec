"""Limits of projects: waiting jobs, GPUs at once, stored bytes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0051_project_limits"
down_revision = "0050_projects"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("max_waiting", sa.Integer(), nullable=True))
    op.add_column("projects", sa.Column("max_gpus", sa.Integer(), nullable=True))
    op.add_column("projects", sa.Column("max_bytes", sa.BigInteger(), nullable=True))
