"""Indexes for the log of a webhook and for the deletion of old messages."""

from __future__ import annotations

from alembic import op

revision = "0045_webhook_logs"
down_revision = "0044_cordons"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_webhook_deliveries_log", "webhook_deliveries", ["webhook_id", "id"])
    op.create_index("ix_webhook_deliveries_ended", "webhook_deliveries", ["ended_at"])
