"""Datasets: images of each class, label lists and image size.  Workers: memory."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("datasets", sa.Column("class_counts", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("datasets", sa.Column("label_lists", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("datasets", sa.Column("image_size", sa.Integer(), nullable=True))
    op.add_column("workers", sa.Column("memory_bytes", sa.BigInteger(), nullable=True))
