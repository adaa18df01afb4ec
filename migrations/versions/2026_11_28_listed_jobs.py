"""Indexes for lists: of jobs by status, and of those that stand alone, as no trial and no evaluation below a run."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022_listed_jobs"
down_revision = "0021_cached_jobs"
branch_labels = None
depends_on = None

_LISTED = sa.text("coalesce(sweep_id, '') = '' AND (kind <> 'evaluate' OR parent_id IS NULL)")


def upgrade() -> None:
    op.create_index("ix_jobs_status", "jobs", ["status", "id"])
    op.create_index("ix_jobs_listed", "jobs", ["id"], sqlite_where=_LISTED, postgresql_where=_LISTED)
