"""What the monitoring reads: the room on a worker's disks, and indexes over the ends of jobs and attempts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0033_monitoring"
down_revision = "0032_worker_versions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("disk_free_bytes", sa.BigInteger(), nullable=True))
    op.create_index("ix_jobs_ended", "jobs", ["ended_at"])
    op.create_index("ix_attempts_ended", "attempts", ["ended_at"])
