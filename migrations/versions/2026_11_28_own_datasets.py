"""The datasets of each worker's own settings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019_own_datasets"
down_revision = "0018_compilers"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("own_datasets", sa.JSON(), nullable=True))
