"""The use of devices by project, too: rows of before count for the project that their key is in now."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0052_use_by_project"
down_revision = "0051_project_limits"
branch_labels = None
depends_on = None

_DEFAULT = "00000000-0000-7000-8000-000000000001"
_NUMBERS = ("day", "gpu_ms", "cpu_ms", "jobs", "attempts", "updated_at")


def upgrade() -> None:
    connection = op.get_bind()
    former = sa.table("device_use", *(sa.column(name) for name in ("owner_id", *_NUMBERS)))
    keys = sa.table("keys", sa.column("id"), sa.column("project_id"))
    project = sa.func.coalesce(keys.c.project_id, _DEFAULT).label("project_id")
    rows = connection.execute(sa.select(former, project).outerjoin(keys, keys.c.id == former.c.owner_id))
    values = [dict(row) for row in rows.mappings()]
    op.drop_table("device_use")  # a row for each key and day; SQLite changes no primary key
    table = op.create_table(
        "device_use",
        sa.Column("owner_id", sa.String(36), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.String(36), nullable=False),
        sa.Column("gpu_ms", sa.BigInteger(), nullable=False),
        sa.Column("cpu_ms", sa.BigInteger(), nullable=False),
        sa.Column("jobs", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner_id", "day", "project_id", name="pk_device_use"),
    )
    if values:
        connection.execute(sa.insert(table), values)
