"""The jobs that one request with an idempotency key has created."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0041_batches"
down_revision = "0040_saved_views"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("idempotency_keys", sa.Column("job_ids", sa.JSON(), nullable=True))
