"""The spec of each job that has not ended, in the lowest version that holds it, so that older workers can run it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0020_spec_versions"
down_revision = "0019_own_datasets"
branch_labels = None
depends_on = None

_SINCE_2: dict[str, Any] = {"device": "auto", "execution": "auto", "nodes": 1}
_SIZES = ("batch_size", "micro_batch_size")


def upgrade() -> None:
    columns = (sa.column("id"), sa.column("status"), sa.column("spec_version"), sa.column("spec", sa.JSON()))
    jobs = sa.table("jobs", *columns)
    has_ended = jobs.c.status.in_(("succeeded", "failed", "cancelled"))
    # Only versions between two releases have written the field without its version.
    has_fields = sa.cast(jobs.c.spec, sa.Text()).like('%"device"%')
    for row in op.get_bind().execute(sa.select(jobs.c.id, jobs.c.spec).where(~has_ended, has_fields)).all():
        version, spec = _lowest(row.spec)
        op.execute(sa.update(jobs).where(jobs.c.id == row.id).values(spec_version=version, spec=spec))


def _lowest(spec: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    has_new = any(spec.get(name, default) != default for name, default in _SINCE_2.items())
    if has_new or any(spec.get(name) == "auto" for name in _SIZES):
        return 2, spec | {"spec_version": 2}
    return 1, {name: value for name, value in spec.items() if name not in _SINCE_2}
