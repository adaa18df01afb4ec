"""Jobs that a worker can run from its cache, although the folder of their dataset has changed since."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021_cached_jobs"
down_revision = "0020_spec_versions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("cached_jobs", sa.JSON(), nullable=True))
