"""Deleted jobs: hidden rows, and a record of each deletion."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0026_deletions"
down_revision = "0025_webhooks"
branch_labels = None
depends_on = None

_HIDDEN = sa.text("hidden_at IS NOT NULL")


def upgrade() -> None:
    for table in ("jobs", "checkpoints", "evaluations"):
        op.add_column(table, sa.Column("hidden_at", sa.BigInteger(), nullable=True))
    op.create_index("ix_jobs_hidden", "jobs", ["hidden_at"], sqlite_where=_HIDDEN, postgresql_where=_HIDDEN)
    op.create_table(
        "deletions",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("root_id", sa.String(36), nullable=False),
        sa.Column("job_name", sa.String(200), nullable=False),
        sa.Column("job_kind", sa.String(32), nullable=False),
        sa.Column("num_checkpoints", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("deleted_by", sa.String(36), nullable=False),
        sa.Column("deleted_by_name", sa.String(200), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=False),
        sa.Column("restored_by", sa.String(36), nullable=True),
        sa.Column("restored_by_name", sa.String(200), nullable=True),
        sa.Column("restored_at", sa.BigInteger(), nullable=True),
        sa.Column("purge_began_at", sa.BigInteger(), nullable=True),
        sa.Column("purged_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_deletions"),
    )
    op.create_index("ix_deletions_job", "deletions", ["job_id"])
    op.create_index("ix_deletions_root", "deletions", ["root_id"])
