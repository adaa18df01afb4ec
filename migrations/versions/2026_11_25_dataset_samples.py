"""Sample sheets of datasets, and an index for the newest jobs on a dataset."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "dataset_samples",
        sa.Column("dataset_name", sa.String(length=64), nullable=False),
        sa.Column("png", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("columns", sa.Integer(), nullable=False),
        sa.Column("side", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_name"], ["datasets.name"], name=op.f("fk_dataset_samples_dataset_name_datasets")
        ),
        sa.PrimaryKeyConstraint("dataset_name", name=op.f("pk_dataset_samples")),
    )
    op.create_index("ix_jobs_dataset", "jobs", ["dataset_name", "id"], unique=False)
