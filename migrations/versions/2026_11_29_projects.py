"""Projects of keys, saved views, links and deletions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0050_projects"
down_revision = "0049_evaluations_of_datasets"
branch_labels = None
depends_on = None

_LISTED = sa.text("coalesce(sweep_id, '') = '' AND (kind <> 'evaluate' OR parent_id IS NULL)")
_DEFAULT = "00000000-0000-7000-8000-000000000001"


def upgrade() -> None:
    for table in ("saved_views", "shares", "deletions"):
        op.add_column(table, sa.Column("project_id", sa.String(36), nullable=False, server_default=_DEFAULT))
    op.add_column("keys", sa.Column("project_id", sa.String(36), nullable=True, server_default=_DEFAULT))
    op.create_index("ix_jobs_project", "jobs", ["project_id", "id"], sqlite_where=_LISTED, postgresql_where=_LISTED)
    keys = sa.table("keys", sa.column("id"), sa.column("scopes", sa.JSON), sa.column("project_id"))
    connection = op.get_bind()
    rows = connection.execute(sa.select(keys.c.id, keys.c.scopes)).all()
    of_all = [row.id for row in rows if "admin" in row.scopes]  # administrators see all projects
    connection.execute(sa.update(keys).where(keys.c.id.in_(of_all)).values(project_id=None))
