"""Limits of keys, and the rules that servers and workers share."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0038_key_limits"
down_revision = "0037_proxy_users"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("max_waiting", "max_devices", "max_submissions"):
        op.add_column("keys", sa.Column(name, sa.Integer(), nullable=True))
    op.create_table(
        "policies",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_policies"),
    )
    op.create_index("ix_jobs_owner_status", "jobs", ["status", "created_by", "created_at"])
    op.create_index("ix_jobs_owner", "jobs", ["created_by", "created_at"])
