"""People whom a trusted proxy signs in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0037_proxy_users"
down_revision = "0036_key_expiry"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("keys", sa.Column("proxy_user", sa.String(200), nullable=True))
    op.create_index("ix_keys_proxy_user", "keys", ["proxy_user"], unique=True)
