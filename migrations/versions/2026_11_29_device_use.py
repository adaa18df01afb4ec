"""The use of devices by key and day, for fair shares and reports; it stays when jobs are removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0039_device_use"
down_revision = "0038_key_limits"
branch_labels = None
depends_on = None

# All of an attempt counts for the day of its end; those that end from now on are split by days.
_FILL = """
    INSERT INTO device_use (owner_id, day, gpu_ms, cpu_ms, jobs, attempts, updated_at)
    SELECT coalesce(jobs.created_by, ''), attempts.ended_at / 86400000,
        sum(CASE WHEN jobs.gpus > 0 THEN (attempts.ended_at - attempts.started_at) * jobs.gpus * jobs.nodes ELSE 0 END),
        sum(CASE WHEN jobs.gpus > 0 THEN 0 ELSE (attempts.ended_at - attempts.started_at) * jobs.nodes END),
        sum(CASE WHEN attempts.number = 1 THEN 1 ELSE 0 END), count(*), max(attempts.ended_at)
    FROM attempts JOIN jobs ON jobs.id = attempts.job_id
    WHERE attempts.ended_at IS NOT NULL AND attempts.ended_at >= attempts.started_at
    GROUP BY coalesce(jobs.created_by, ''), attempts.ended_at / 86400000
"""


def upgrade() -> None:
    op.create_table(
        "device_use",
        sa.Column("owner_id", sa.String(36), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("gpu_ms", sa.BigInteger(), nullable=False),
        sa.Column("cpu_ms", sa.BigInteger(), nullable=False),
        sa.Column("jobs", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner_id", "day", name="pk_device_use"),
    )
    op.execute(_FILL)
