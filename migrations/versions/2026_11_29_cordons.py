"""Workers that take no further job until a user allows it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0044_cordons"
down_revision = "0043_reconcilers"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("cordoned_at", sa.BigInteger(), nullable=True))
