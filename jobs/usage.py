"""What the jobs of each key and each project use: devices, stored for each day when an attempt ends, and files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from sqlalchemy import BigInteger, Row, Subquery, and_, cast, distinct, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from jobs import checkpoints
from jobs.attempts import AttemptRef
from jobs.database import DEFAULT_PROJECT, database_time, insert, project_of, within
from jobs.models import SEES_HIDDEN, Artifact, Attempt, Checkpoint, DeviceUse, Job, Key, ProjectUse
from jobs.projects import by_id

DAY_MS = 86_400_000
_LAST_DAY = 2**31 - 1  # that the column can hold


def charge(session: Session, attempt: AttemptRef) -> None:
    """Add an attempt that the transaction has ended to the use of its job's key and project, on each day of it."""
    of_job = Job.created_by, Job.project_id, Job.gpus, Job.nodes
    statement = select(Attempt.started_at, Attempt.ended_at, *of_job).join(Job)
    row = session.execute(statement.where(attempt.is_row()), execution_options=SEES_HIDDEN).one()
    devices = max(1, row.gpus * row.nodes)
    for place, (day, milliseconds) in enumerate(_by_day(row.started_at, max(row.started_at, row.ended_at))):
        values = {
            "gpu_ms": milliseconds * devices if row.gpus else 0,
            "cpu_ms": 0 if row.gpus else milliseconds * devices,
            "jobs": int(attempt.number == 1 and place == 0),
            "attempts": int(place == 0),
        }
        key = {"owner_id": row.created_by or "", "day": day}
        _add(session, DeviceUse, key, values | {"updated_at": row.ended_at})
        _add(session, ProjectUse, key | {"project_id": row.project_id}, values | {"updated_at": row.ended_at})


def _add(session: Session, table: type[DeviceUse | ProjectUse], key: dict[str, Any], values: dict[str, int]) -> None:
    """Add numbers to those of a row, which may not be there yet; `updated_at` is replaced."""
    added = insert(session, table).values(**key, **values)
    sums = {name: getattr(table, name) + added.excluded[name] for name in values}
    sums["updated_at"] = added.excluded.updated_at
    session.execute(added.on_conflict_do_update(index_elements=[getattr(table, name) for name in key], set_=sums))


def _by_day(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield each day of a time, with the milliseconds on it; a time of no length has one day."""
    for day in range(start // DAY_MS, end // DAY_MS + 1):
        milliseconds = min(end, (day + 1) * DAY_MS) - max(start, day * DAY_MS)
        if milliseconds > 0 or start == end:
            yield day, milliseconds


# --- reports ---------------------------------------------------------------------------------------------------------


@dataclass
class Usage:
    """What the jobs of a key, of a project, or of a key in a project used in a month.

    Jobs that still run or are deleted count.

    Attributes:
        month: such as 2026-11, in UTC.
        owner_id: the id of the key; empty for jobs of none, and for a project.
        owner: the name of the key.
        project_id: the id of the project; None where the row is about a key in all projects.
        project: the name of the project.
        gpu_ms: of all GPUs together.
        cpu_ms: of attempts without GPUs.
        jobs: number of jobs that ran for the first time.
        attempts: number of attempts that began.
    """

    month: str
    owner_id: str = ""
    owner: str = ""
    project_id: str | None = None
    project: str | None = None
    gpu_ms: int = 0
    cpu_ms: int = 0
    jobs: int = 0
    attempts: int = 0


def monthly(
    session: Session, first: str | None = None, last: str | None = None, *, by: Collection[str] = ("key",)
) -> list[Usage]:
    """Return the use of each key or project in each month, the newest month first, in it the largest use first.

    Args:
        session: a reading transaction.
        first, last: months, such as 2026-11; without one, there is no limit.
        by: `key`, `project` or both: what a row is about.
    """
    result: dict[tuple[str, str, str | None], Usage] = {}

    def of(day: int, owner: str, project: str) -> Usage:
        key = _month(day), owner if "key" in by else "", project if "project" in by else None
        return result.setdefault(key, Usage(key[0], owner_id=key[1], project_id=key[2]))

    for row in _stored(session, first, last):
        usage = of(row.day, row.owner_id, row.project_id)
        usage.gpu_ms, usage.cpu_ms = usage.gpu_ms + row.gpu_ms, usage.cpu_ms + row.cpu_ms
        usage.jobs, usage.attempts = usage.jobs + row.jobs, usage.attempts + row.attempts
    of_job = Job.created_by, Job.project_id, Job.gpus, Job.nodes
    running = select(Attempt.number, Attempt.started_at, *of_job).join(Job)
    now = database_time(session)
    for attempt in session.execute(running.where(Attempt.ended_at.is_(None)), execution_options=SEES_HIDDEN):
        devices = max(1, attempt.gpus * attempt.nodes)
        for place, (day, milliseconds) in enumerate(_by_day(attempt.started_at, max(attempt.started_at, now))):
            usage = of(day, attempt.created_by or "", attempt.project_id)
            usage.gpu_ms += milliseconds * devices if attempt.gpus else 0
            usage.cpu_ms += 0 if attempt.gpus else milliseconds * devices
            usage.jobs += int(place == 0 and attempt.number == 1)
            usage.attempts += int(place == 0)
    names, projects = names_of(session), by_id(session)
    for usage in result.values():
        usage.owner = names.get(usage.owner_id, "")
        usage.project = projects.get(usage.project_id or "")
    chosen = [usage for usage in result.values() if (first or "") <= usage.month <= (last or usage.month)]
    chosen.sort(key=lambda each: (-each.gpu_ms, -each.cpu_ms, each.owner, each.project or "", each.owner_id))
    return sorted(chosen, key=lambda each: each.month, reverse=True)


def _stored(session: Session, first: str | None, last: str | None) -> list[Row[Any]]:
    """Return the use of each key on each day in each project that the transaction sees.

    What versions before projects have added counts for the project that their key is in now.
    """
    days = 0 if first is None else _day_of(first), _LAST_DAY if last is None else _day_of(last) + 30
    names = "gpu_ms", "cpu_ms", "jobs", "attempts"
    numbers = [getattr(ProjectUse, name) for name in names]
    by_project = select(ProjectUse.owner_id, ProjectUse.day, ProjectUse.project_id, *numbers)
    rows = list(session.execute(by_project.where(ProjectUse.day.between(*days))))
    rest = [
        (getattr(DeviceUse, name) - cast(func.coalesce(func.sum(number), 0), BigInteger)).label(name)
        for name, number in zip(names, numbers, strict=True)
    ]
    of_before = (
        select(DeviceUse.owner_id, DeviceUse.day, func.coalesce(Key.project_id, DEFAULT_PROJECT).label("project_id"))
        .add_columns(*rest)
        .outerjoin(ProjectUse, and_(ProjectUse.owner_id == DeviceUse.owner_id, ProjectUse.day == DeviceUse.day))
        .outerjoin(Key, Key.id == DeviceUse.owner_id)
        .where(DeviceUse.day.between(*days))
        .group_by(DeviceUse.owner_id, DeviceUse.day, Key.project_id)
        .having(or_(*(number > 0 for number in rest)))
    )
    seen = project_of(session)
    with within(session, None):
        return rows + [row for row in session.execute(of_before) if seen in (None, row.project_id)]


def names_of(session: Session) -> dict[str, str]:
    """Return the names of all keys by id."""
    with within(session, None):  # keys of all projects submit jobs, too
        return {row.id: row.name for row in session.execute(select(Key.id, Key.name))}


def _day_of(month: str) -> int:
    """Return the first day of a month, in days since 1970."""
    return (date.fromisoformat(f"{month}-01") - date(1970, 1, 1)).days


def _month(day: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()[:7]


@dataclass(frozen=True)
class Stored:
    """The registered files of the jobs of a key: checkpoints and artifacts.  Those of deleted jobs do not count."""

    owner_id: str
    owner: str
    num_jobs: int
    num_files: int
    size: int


@dataclass(frozen=True)
class StoredInProject:
    """The registered files of the jobs of a project, as `Stored`."""

    project_id: str
    project: str
    num_jobs: int
    num_files: int
    size: int


@dataclass(frozen=True)
class StoredJob:
    """The registered files of a job.

    Attributes:
        size: of all, in bytes.
        removable: bytes of its checkpoints that can be deleted: all but the newest and pinned ones, and those that an
            unfinished job or sweep needs.
    """

    job_id: str
    name: str
    status: str
    owner: str
    num_files: int
    size: int
    removable: int


def stored(session: Session) -> list[Stored]:
    """Return the stored bytes of each key, the largest first."""
    names = names_of(session)
    rows = [Stored(key or "", names.get(key or "", ""), *rest) for key, *rest in _stored_by(session, Job.created_by)]
    return sorted(rows, key=lambda each: (-each.size, each.owner))


def stored_in_projects(session: Session) -> list[StoredInProject]:
    """Return the stored bytes of each project, the largest first."""
    names = by_id(session)
    rows = [StoredInProject(key, names.get(key, ""), *rest) for key, *rest in _stored_by(session, Job.project_id)]
    return sorted(rows, key=lambda each: (-each.size, each.project))


def _stored_by(session: Session, column: InstrumentedAttribute[Any]) -> list[tuple[Any, int, int, int]]:
    """Return the numbers of jobs and files and the bytes, by the values of a column."""
    files = _files()
    numbers = func.count(distinct(Job.id)), func.count(), func.sum(files.c.size)
    statement = select(column, *numbers).join(files, files.c.job_id == Job.id).group_by(column)
    return [(key, num_jobs, num_files, int(size)) for key, num_jobs, num_files, size in session.execute(statement)]


def size_of(session: Session, project_id: str) -> int:
    """Return the stored bytes of a project."""
    files = _files()
    statement = select(func.sum(files.c.size)).join(Job, Job.id == files.c.job_id).where(Job.project_id == project_id)
    return int(session.execute(statement).scalar_one() or 0)


def largest(session: Session, limit: int = 50, owner_id: str | None = None) -> list[StoredJob]:
    """Return the jobs with the most stored bytes.

    Args:
        session: a reading transaction.
        limit: number of jobs.
        owner_id: only jobs of this key; of all if None.
    """
    files = _files()
    size = func.sum(files.c.size)
    statement = select(Job.id, Job.name, Job.status, Job.created_by, func.count(), size)
    statement = (
        statement.join(files, files.c.job_id == Job.id).group_by(Job.id).order_by(size.desc(), Job.id).limit(limit)
    )
    if owner_id is not None:
        statement = statement.where(Job.created_by == owner_id)
    rows = session.execute(statement).all()
    spare, names = _removable(session, [row.id for row in rows]), names_of(session)
    return [
        StoredJob(job_id, name, status, names.get(owner or "", ""), count, int(total), spare.get(job_id, 0))
        for job_id, name, status, owner, count, total in rows
    ]


def _files() -> Subquery:
    kept = select(Checkpoint.job_id, Checkpoint.size).where(Checkpoint.deleted_at.is_(None))
    return kept.union_all(select(Artifact.job_id, Artifact.size)).subquery()


def _removable(session: Session, job_ids: Sequence[str]) -> dict[str, int]:
    """Return the bytes of the checkpoints that could be deleted while the newest good one stays, by job."""
    sizes = Counter[str]()
    for row in checkpoints.spare(session, job_ids):
        sizes[row.job_id] += row.size
    return sizes
