"""Keys expire and are rotated."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0036_key_expiry"
down_revision = "0035_request_ids"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("keys", sa.Column("expires_at", sa.BigInteger(), nullable=True))
    op.add_column("keys", sa.Column("rotated_at", sa.BigInteger(), nullable=True))
    op.add_column("keys", sa.Column("form_key", sa.String(200), nullable=True))
    op.create_index("ix_keys_form_key", "keys", ["form_key"], unique=True)
