"""Indexes in the order of the queue, for all jobs and for those of each key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0042_claim_order"
down_revision = "0041_batches"
branch_labels = None
depends_on = None

_PRIORITY = sa.text("priority DESC")


def upgrade() -> None:
    op.drop_index("ix_jobs_claim", "jobs")
    op.create_index("ix_jobs_claim", "jobs", ["status", "pool", _PRIORITY, "queue_place"])
    op.create_index("ix_jobs_claim_owner", "jobs", ["status", "pool", "created_by", _PRIORITY, "queue_place"])
