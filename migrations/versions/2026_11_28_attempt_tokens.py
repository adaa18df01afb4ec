"""Random tokens of attempts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011_attempt_tokens"
down_revision = "0010_storages"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("token", sa.String(length=32), nullable=True))
