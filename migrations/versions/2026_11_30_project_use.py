"""The use by project has a table of its own: servers and workers of before add to `device_use`, a row a key and day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0054_project_use"
down_revision = "0053_removed_projects"
branch_labels = None
depends_on = None

_NUMBERS = ("gpu_ms", "cpu_ms", "jobs", "attempts")


def upgrade() -> None:
    connection = op.get_bind()
    op.rename_table("device_use", "project_use")
    if connection.dialect.name == "postgresql":
        op.execute("ALTER INDEX pk_device_use RENAME TO pk_project_use")
    table = op.create_table(
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
    columns = ("owner_id", "day", *_NUMBERS, "updated_at")
    former = sa.table("project_use", *(sa.column(name) for name in columns))
    sums = [sa.func.sum(former.c[name]) for name in _NUMBERS]
    of_day = sa.select(former.c.owner_id, former.c.day, *sums, sa.func.max(former.c.updated_at))
    connection.execute(sa.insert(table).from_select(columns, of_day.group_by(former.c.owner_id, former.c.day)))
