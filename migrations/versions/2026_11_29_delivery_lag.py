"""How far the deliveries of a worker are behind."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0047_delivery_lag"
down_revision = "0046_thinned_curves"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("lag_ms", sa.BigInteger(), nullable=True))
