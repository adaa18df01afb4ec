"""Jobs of several nodes: the workers of an attempt, where its ranks meet, and the addresses of workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017_nodes"
down_revision = "0016_dataset_sources"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "attempt_nodes",
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("node", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.String(length=36), nullable=False),
        sa.Column("worker_name", sa.String(length=200), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("renewals", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id", "attempt"],
            ["attempts.job_id", "attempts.number"],
            name=op.f("fk_attempt_nodes_job_id_attempts"),
        ),
        sa.PrimaryKeyConstraint("job_id", "attempt", "node", name=op.f("pk_attempt_nodes")),
    )
    op.create_index("ix_attempt_nodes_worker", "attempt_nodes", ["worker_id"])
    op.add_column("jobs", sa.Column("nodes", sa.Integer(), server_default=sa.text("1"), nullable=False))
    op.add_column("attempts", sa.Column("rendezvous", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("attempts", sa.Column("drain_requested_at", sa.BigInteger(), nullable=True))
    op.add_column("attempt_devices", sa.Column("node", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("workers", sa.Column("address", sa.String(length=64), nullable=True))
    op.add_column("workers", sa.Column("takes_one", sa.Boolean(), server_default=sa.false(), nullable=False))
