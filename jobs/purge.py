"""The removal of deleted jobs, once their time for a restore is over.

    1  the `Deletion` notes that the purge has begun; from then on the job cannot be restored
    2  the files are removed
    3  the rows are removed, in short transactions
    4  the last transaction removes the job's own row, and notes the end in the `Deletion`

The job's row goes last, so a purge that is interrupted anywhere is found again, and repeats what is left.  Files go
before rows, because only a row tells that a file has an owner.  Several servers may purge at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from sqlalchemy import ColumnElement, Table, and_, delete, or_, select, tuple_, update
from sqlalchemy.orm import Session

from jobs import activity
from jobs.access import Principal
from jobs.database import Database, now_ms
from jobs.errors import NotFound
from jobs.models import Base, Deletion, Evaluation, IdempotencyKey, Job, JobEvaluation, Point, Rollup, Series
from jobs.storage import Storage

log = logging.getLogger(__name__)

BATCH: Final = 5_000  # rows of one transaction
_PAUSE_SECONDS = 0.01  # between two transactions, so that runs can deliver
_MOST_JOBS = 100  # of one query


def purge_due(database: Database, storage: Storage, restore_days: float, stop: threading.Event) -> int:
    """Purge the jobs whose time for a restore is over, oldest deletion first; return their number.

    Raises:
        OSError, DBAPIError: the storage or the database does not respond; the next call goes on.
    """
    count = 0
    while due := _due(database, restore_days):
        for deletion_id, job_id in due:
            if stop.is_set():
                return count
            purge(database, storage, deletion_id, job_id)
            count += 1
    return count


def _due(database: Database, restore_days: float) -> list[tuple[str, str]]:
    """Return ids of deletions and their jobs."""
    is_late = Deletion.deleted_at <= now_ms() - int(restore_days * 86_400_000)
    is_open = (Deletion.restored_at.is_(None), Deletion.purged_at.is_(None))
    statement = select(Deletion.id, Deletion.job_id).where(*is_open, or_(is_late, Deletion.purge_began_at.is_not(None)))
    with database.read() as session:
        rows = session.execute(statement.order_by(Deletion.deleted_at, Deletion.id).limit(_MOST_JOBS)).all()
    return [(row.id, row.job_id) for row in rows]


def request(session: Session, job_ids: Sequence[str], owner_id: str | None, by: Principal) -> list[tuple[str, str]]:
    """Begin the purge of deleted jobs before their time, so that none can be restored; return their deletions.

    Args:
        session: a writing transaction.
        job_ids: jobs that a user has deleted; their evaluations follow.
        owner_id: a key, in place of ids: all deleted jobs that it has submitted.
        by: the administrator.

    Returns:
        Ids of deletions and their jobs, for `purge`.

    Raises:
        NotFound: a job is not deleted, was restored, or was deleted with another one.
    """
    chosen = _chosen(session, job_ids, owner_id, is_locking=True)
    waiting = [row.id for row in chosen if row.purge_began_at is None]
    session.execute(update(Deletion).where(Deletion.id.in_(waiting)).values(purge_began_at=now_ms()))
    for row in chosen:
        if row.id in waiting and row.job_id == row.root_id:
            activity.note(session, "job.purge", row.job_id, row.job_name, by=by, size=row.size)
    return [(row.id, row.job_id) for row in chosen]


def requested(session: Session, job_ids: Sequence[str], owner_id: str | None) -> list[Deletion]:
    """Return the deletions that `request` would purge, as it does."""
    return _chosen(session, job_ids, owner_id, is_locking=False)


def _chosen(session: Session, job_ids: Sequence[str], owner_id: str | None, *, is_locking: bool) -> list[Deletion]:
    open_ones = select(Deletion).where(Deletion.restored_at.is_(None), Deletion.purged_at.is_(None))
    if owner_id is not None:
        own = select(_JOBS.c.id).where(_JOBS.c.created_by == owner_id)  # of the table: the jobs are hidden
        open_ones = open_ones.where(Deletion.root_id.in_(own))
    else:
        open_ones = open_ones.where(Deletion.root_id.in_(job_ids))
    if is_locking:
        open_ones = open_ones.with_for_update()
    rows = list(session.execute(open_ones.order_by(Deletion.deleted_at, Deletion.id)).scalars())
    if absent := sorted(set(job_ids) - {row.root_id for row in rows}):
        raise NotFound(f"there is no deleted job {absent[0]}; `wcl undelete` lists the deleted ones")
    return rows


def purge(database: Database, storage: Storage, deletion_id: str, job_id: str) -> None:
    """Remove files and rows of one deleted job; repeat what an interrupted call has left."""
    if not database.write(partial(_begin, deletion_id=deletion_id)):
        return  # it was restored
    storage.delete_job(job_id)
    with database.read() as session:
        series = session.execute(select(Series.id).where(Series.job_id == job_id)).scalars().all()
    for table in (Rollup.__table__, Point.__table__):
        for series_id in series:
            _remove(database, table, table.c.series_id == series_id)
    for table in _PARTS:
        _remove(database, table, table.c.job_id == job_id)
    database.write(partial(_finish, deletion_id=deletion_id, job_id=job_id))
    log.info("removed the deleted job %s", job_id)


def _parts() -> list[Table]:
    """Return the tables with rows of a job, each before the tables that it refers to."""
    later = {Job.__tablename__, JobEvaluation.__tablename__}
    return [
        table
        for table in reversed(Base.metadata.sorted_tables)
        if "job_id" in table.c and table.foreign_keys and table.name not in later
    ]


_PARTS: Final = _parts()


def _begin(session: Session, deletion_id: str) -> bool:
    record = session.execute(select(Deletion).where(Deletion.id == deletion_id).with_for_update()).scalar_one()
    if record.restored_at is not None or record.purged_at is not None:
        return False
    if record.purge_began_at is None:
        session.execute(update(Deletion).where(Deletion.id == deletion_id).values(purge_began_at=now_ms()))
    return True


def _remove(database: Database, table: Any, condition: ColumnElement[bool]) -> None:
    """Delete the rows in the order of their primary key, `BATCH` rows a transaction."""
    while database.write(partial(_remove_batch, table=table, condition=condition)):
        time.sleep(_PAUSE_SECONDS)


def _remove_batch(session: Session, table: Any, condition: ColumnElement[bool]) -> bool:
    """Delete the next rows; return whether there are more."""
    key = list(table.primary_key.columns)
    following = session.execute(select(*key).where(condition).order_by(*key).offset(BATCH).limit(1)).first()
    if following is not None:
        condition = and_(condition, tuple_(*key) < tuple_(*following))
    session.execute(delete(table).where(condition))
    return following is not None


def _finish(session: Session, deletion_id: str, job_id: str) -> None:
    own = select(JobEvaluation.evaluation_id).where(JobEvaluation.job_id == job_id)
    values = (
        session.execute(select(_EVALUATIONS.c.id).where(_EVALUATIONS.c.id.in_(own)).with_for_update()).scalars().all()
    )
    dependencies = Base.metadata.tables["dependencies"]
    for statement in (
        delete(JobEvaluation).where(JobEvaluation.job_id == job_id),
        delete(_EVALUATIONS).where(_EVALUATIONS.c.id.in_(values), ~_has_link()),
        delete(dependencies).where(dependencies.c.needs_job_id == job_id),
        delete(IdempotencyKey).where(IdempotencyKey.job_id == job_id),
        delete(_JOBS).where(_JOBS.c.id == job_id),
        update(Deletion).where(Deletion.id == deletion_id, Deletion.purged_at.is_(None)).values(purged_at=now_ms()),
    ):
        session.execute(statement)


# Tables in place of classes, whose hidden rows a statement does not see
_EVALUATIONS: Final[Any] = Evaluation.__table__
_JOBS: Final[Any] = Job.__table__


def _has_link() -> ColumnElement[bool]:
    return select(JobEvaluation.job_id).where(JobEvaluation.evaluation_id == _EVALUATIONS.c.id).exists()
