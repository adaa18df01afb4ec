"""When old points of a job's long curves were removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0046_thinned_curves"
down_revision = "0045_webhook_logs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("thinned_at", sa.BigInteger(), nullable=True))
