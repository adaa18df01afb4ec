"""The id of the request that submitted a job, which the logs of server and workers name."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0035_request_ids"
down_revision = "0034_activities"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("request_id", sa.String(64), nullable=True))
