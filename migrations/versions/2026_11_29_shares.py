"""Links that show jobs without a key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0031_shares"
down_revision = "0030_references"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "shares",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("form_key", sa.String(200), nullable=True),
        sa.Column("created_by", sa.String(36), nullable=False),
        sa.Column("created_by_name", sa.String(200), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_by_name", sa.String(200), nullable=True),
        sa.ForeignKeyConstraint(["created_by"], ["keys.id"], name="fk_shares_created_by_keys"),
        sa.PrimaryKeyConstraint("id", name="pk_shares"),
        sa.UniqueConstraint("hash", name="uq_shares_hash"),
        sa.UniqueConstraint("form_key", name="uq_shares_form_key"),
    )
    op.create_table(
        "share_jobs",
        sa.Column("share_id", sa.String(36), nullable=False),
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["share_id"], ["shares.id"], name="fk_share_jobs_share_id_shares"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_share_jobs_job_id_jobs"),
        sa.PrimaryKeyConstraint("share_id", "job_id", name="pk_share_jobs"),
    )
    op.create_index("ix_share_jobs_job_id", "share_jobs", ["job_id"])
