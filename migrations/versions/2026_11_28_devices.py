"""Devices of workers and of attempts; no device belongs to two open attempts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014_devices"
down_revision = "0013_dataset_reports"
branch_labels = None
depends_on = None

_IN_USE = sa.text("released_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "attempt_devices",
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(length=128), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("released_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id", "attempt"],
            ["attempts.job_id", "attempts.number"],
            name=op.f("fk_attempt_devices_job_id_attempts"),
        ),
        sa.PrimaryKeyConstraint("job_id", "attempt", "device", name=op.f("pk_attempt_devices")),
    )
    op.create_index(
        "uq_attempt_devices_in_use",
        "attempt_devices",
        ["device"],
        unique=True,
        sqlite_where=_IN_USE,
        postgresql_where=_IN_USE,
    )
    op.add_column("workers", sa.Column("devices", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("workers", sa.Column("cpu_slots", sa.Integer(), nullable=True))
