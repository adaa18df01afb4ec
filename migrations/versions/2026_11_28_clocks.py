"""The queue's order by a sequence of the database, and running times by the workers' monotonic clocks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012_clocks"
down_revision = "0011_attempt_tokens"
branch_labels = None
depends_on = None

_NUMBER = """
UPDATE jobs SET queue_place = numbered.place
FROM (SELECT id, row_number() OVER (ORDER BY id) AS place FROM jobs) AS numbered
WHERE jobs.id = numbered.id
"""


def upgrade() -> None:
    op.add_column("attempts", sa.Column("ran_ms", sa.BigInteger(), nullable=True))
    # The default is for jobs that a server of an older version adds during the upgrade.
    op.add_column("jobs", sa.Column("queue_place", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    op.execute(_NUMBER)
    op.drop_index("ix_jobs_claim", "jobs")
    op.create_index("ix_jobs_claim", "jobs", ["status", "pool", "priority", "queue_place"])
    op.create_index("ix_jobs_queue_place", "jobs", ["queue_place"])
    if op.get_bind().dialect.name == "postgresql":
        op.execute("CREATE SEQUENCE queue_places")
        op.execute("SELECT setval('queue_places', (SELECT count(*) + 1 FROM jobs))")
