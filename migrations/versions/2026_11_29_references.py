"""References: the training of a dataset that others are compared with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0030_references"
down_revision = "0029_notes"
branch_labels = None
depends_on = None

_REFERENCE = sa.text("reference_at IS NOT NULL")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("reference_at", sa.BigInteger(), nullable=True))
    op.create_index("ix_jobs_reference", "jobs", ["dataset_name"], sqlite_where=_REFERENCE, postgresql_where=_REFERENCE)
