"""References: one training of a dataset, with which lists, charts and comparisons compare the others."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jobs import activity, queries
from jobs.database import now_ms
from jobs.errors import Conflict
from jobs.events import record
from jobs.models import Job


def set_reference(session: Session, job_id: str, is_reference: bool) -> None:
    """Make a training the reference of its dataset, in place of the one before; or make it none any more.

    Raises:
        NotFound: there is no such job.
        Conflict: it is no training.
    """
    job = queries.get_job(session, job_id, lock=True)
    if job.kind != "pretrain":
        raise Conflict("only a training can be the reference, and this job is an evaluation")
    if is_reference:
        others = (Job.dataset_name == job.dataset_name, Job.reference_at.is_not(None), Job.id != job_id)
        own = Job.project_id == job.project_id  # each project has a reference of its own
        session.execute(update(Job).where(own, *others).values(reference_at=None))
    values = {"reference_at": now_ms() if is_reference else None, "updated_at": now_ms()}
    session.execute(update(Job).where(Job.id == job_id).values(values))
    record(session, job_id, "changed", {"reference": is_reference})
    activity.note(session, f"job.{'' if is_reference else 'un'}reference", job_id, job.name)


def references(session: Session, dataset_names: Collection[str]) -> dict[str, Job]:
    """Return the reference of each dataset that has one; the newest, if two were set at the same time."""
    pinned = select(Job).where(Job.dataset_name.in_(set(dataset_names)), Job.reference_at.is_not(None))
    rows = session.execute(pinned.order_by(Job.reference_at, Job.id)).scalars() if dataset_names else ()
    return {job.dataset_name: job for job in rows}
