"""The activity log: who did what, and when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0034_activities"
down_revision = "0033_monitoring"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "activities",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor_id", sa.String(36), nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("object_id", sa.String(200), nullable=False),
        sa.Column("object_name", sa.String(200), nullable=False),
        sa.Column("details", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_activities"),
    )
    op.create_index("ix_activities_object", "activities", ["object_id", "id"])
    op.create_index("ix_activities_at", "activities", ["at"])
