"""The polls of the servers' reconcilers: while they go on, workers need none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0043_reconcilers"
down_revision = "0042_claim_order"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "reconcilers",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("polls", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_reconcilers"),
    )
