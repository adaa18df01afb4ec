"""The version of the service that a worker runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0032_worker_versions"
down_revision = "0031_shares"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("version", sa.String(32), nullable=True))
