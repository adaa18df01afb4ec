"""Projects can be removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0053_removed_projects"
down_revision = "0052_use_by_project"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("removed_at", sa.BigInteger(), nullable=True))
