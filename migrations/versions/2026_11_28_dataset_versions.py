"""The number of images by class of each version of a dataset, which verdicts need when the version has changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023_dataset_versions"
down_revision = "0022_listed_jobs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    versions = op.create_table(
        "dataset_versions",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("class_counts", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_dataset_versions")),
    )
    datasets = sa.table("datasets", sa.column("digest"), sa.column("class_counts", sa.JSON(none_as_null=True)))
    rows = op.get_bind().execute(sa.select(datasets.c.digest, datasets.c.class_counts)).all()
    for digest, counts in {row.digest: row.class_counts for row in rows}.items():
        if digest and counts:
            op.execute(sa.insert(versions).values(digest=digest, class_counts=counts))
