"""Points of many series in few rows: blocks and their rollups; points of before stay where they are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0055_point_blocks"
down_revision = "0054_project_use"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("series", sa.Column("number", sa.Integer(), nullable=True))
    op.create_table(
        "point_blocks",
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("chunk", sa.Integer(), nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("columns", sa.LargeBinary(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_point_blocks_job_id_jobs"),
        sa.PrimaryKeyConstraint("job_id", "attempt", "seq", "part", name="pk_point_blocks"),
    )
    index = ["job_id", "attempt", "chunk", "first_step", "last_step"]
    op.create_index("ix_point_blocks_step", "point_blocks", index)
    op.create_table(
        "rollup_blocks",
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("chunk", sa.Integer(), nullable=False),
        sa.Column("width", sa.BigInteger(), nullable=False),
        sa.Column("bucket", sa.BigInteger(), nullable=False),
        sa.Column("columns", sa.LargeBinary(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_rollup_blocks_job_id_jobs"),
        sa.PrimaryKeyConstraint("job_id", "attempt", "chunk", "width", "bucket", name="pk_rollup_blocks"),
    )
