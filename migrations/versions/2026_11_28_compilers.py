"""Whether a worker's machine has the compiler that compiled steps need."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018_compilers"
down_revision = "0017_nodes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("has_compiler", sa.Boolean(), nullable=True))
