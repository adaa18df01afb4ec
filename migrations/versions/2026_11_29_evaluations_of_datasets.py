"""Indexes of evaluations by dataset and protocol, and of the jobs that measured them, for the leaderboard."""

from __future__ import annotations

from alembic import op

revision = "0049_evaluations_of_datasets"
down_revision = "0048_job_search"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_evaluations_dataset", "evaluations", ["dataset_digest", "protocol"])
    op.create_index("ix_job_evaluations_evaluation", "job_evaluations", ["evaluation_id"])
