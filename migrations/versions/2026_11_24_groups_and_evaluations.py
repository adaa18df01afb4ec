"""Seed groups, presets, planned evaluations, and kinds of checkpoint files."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("preset", sa.String(length=64), nullable=True))
    op.add_column("jobs", sa.Column("group_id", sa.String(length=36), nullable=True))
    op.add_column("jobs", sa.Column("origin", sa.String(length=64), nullable=True))
    op.create_index(op.f("ix_jobs_group_id"), "jobs", ["group_id"])
    op.create_index("ix_jobs_origin", "jobs", ["parent_id", "origin"], unique=True)
    op.add_column("evaluations", sa.Column("details", sa.JSON(none_as_null=True), nullable=True))
    op.add_column(
        "checkpoints", sa.Column("kind", sa.String(length=16), nullable=False, server_default=sa.text("'training'"))
    )
