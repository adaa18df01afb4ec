"""The list of jobs for people: trials stand under their sweep, seeds under their group, evaluations under their run.

An entry is a job on its own, a seed group or a sweep.  Entries come newest first, a page at a time; the number of
statements does not depend on the number of jobs.  A sorted list holds the newest `WINDOW` entries.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import Select, exists, func, literal, or_, select
from sqlalchemy.orm import Session, aliased

from jobs.errors import FieldError, Invalid
from jobs.models import LISTED, Evaluation, Job, JobEvaluation, Sweep
from jobs.queries import Filters, Page, matching
from wcl_core.protocol import KNN_TOP1
from wcl_core.text import share_done

WINDOW: Final = 1_000  # entries of a sorted list, the newest ones
MAX_BELOW: Final = 100  # jobs that are shown below one entry
Sort = Literal["", "name", "status", "method", "dataset", "knn", "age"]

GROUP_FIELD: Final = re.compile(r"[a-z][a-z0-9_]{0,63}(\.[a-z0-9_]{1,64}){0,4}")
_GROUP_COLUMNS: Final[dict[str, Any]] = {
    "status": Job.status,
    "kind": Job.kind,
    "dataset": Job.dataset_name,
    "pool": Job.pool,
}
_KNN = Job.latest_metrics[KNN_TOP1].as_float()
_METHOD = Job.spec["method"].as_string()


@dataclass(frozen=True)
class Member:
    """A job of a seed group, without its spec."""

    id: str
    status: str
    knn: float | None
    fraction: float


@dataclass(frozen=True)
class Entry:
    """A line of the list.

    Attributes:
        id: of the job, the seed group or the sweep.
        job: the job, or the first one of a seed group; None for a sweep.
        members: the jobs of a seed group; empty for other entries.
        counts: the jobs of a sweep by status.
        num_evaluations: below a job.
    """

    id: str
    job: Job | None = None
    sweep: Sweep | None = None
    members: list[Member] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    num_evaluations: int = 0


class _Key(NamedTuple):
    """An entry before it is read, with the values by which a list is sorted."""

    id: str
    is_sweep: bool
    name: str
    status: str
    dataset: str
    method: str | None
    knn: float | None


def entries(session: Session, sort: Sort, descending: bool, cursor: str | None, limit: int) -> Page[Entry]:
    """Return a page of entries: newest first, or sorted.

    Raises:
        Invalid: the cursor is malformed.
    """
    if sort:
        page = _part(_sorted([*_job_keys(session), *_sweep_keys(session)], sort, descending), cursor, limit)
        jobs = _by_id(session, Job, [key.id for key in page.items if not key.is_sweep])
        sweeps = _by_id(session, Sweep, [key.id for key in page.items if key.is_sweep])
        rows: list[Job | Sweep] = [sweeps[key.id] if key.is_sweep else jobs[key.id] for key in page.items]
        following = page.next_cursor
    else:
        check_cursor(cursor)
        newest = [_after(statement, cursor, limit) for statement in (_listed(select(Job)), select(Sweep))]
        candidates = [row for statement in newest for row in session.execute(statement).scalars()]
        rows = sorted(candidates, key=lambda row: row.id, reverse=True)
        following = rows[limit - 1].id if len(rows) > limit else None
        rows = rows[:limit]
    return Page(_entries(session, rows), following)


def check_cursor(cursor: str | None) -> None:
    if cursor and len(cursor) != 36:
        raise Invalid([FieldError("cursor", "expected a cursor from the previous page")])


def _listed(statement: Select[Any]) -> Select[Any]:
    """Restrict jobs to entries: those that `LISTED` keeps, the first one of each seed group, and no archived ones."""
    earlier = aliased(Job)
    is_listed = (earlier.id < Job.id, earlier.archived_at.is_(None))
    is_later = exists().where(earlier.group_id == Job.group_id, *is_listed)
    return statement.where(LISTED, Job.archived_at.is_(None), or_(Job.group_id.is_(None), ~is_later))


def _after(statement: Select[Any], cursor: str | None, limit: int) -> Select[Any]:
    row_id = statement.selected_columns.id
    statement = statement.order_by(row_id.desc()).limit(limit + 1)
    return statement.where(row_id < cursor) if cursor else statement


def _by_id(session: Session, model: Any, ids: Sequence[str]) -> dict[str, Any]:
    return {row.id: row for row in session.execute(select(model).where(model.id.in_(ids))).scalars()}


def _entries(session: Session, rows: Sequence[Job | Sweep]) -> list[Entry]:
    jobs = [row for row in rows if isinstance(row, Job)]
    members = _members(session, [job.group_id for job in jobs if job.group_id])
    counts = _trial_counts(session, [row.id for row in rows if isinstance(row, Sweep)])
    evaluations = num_evaluations(session, [job.id for job in jobs if not job.group_id])

    def entry(row: Job | Sweep) -> Entry:
        if isinstance(row, Sweep):
            return Entry(row.id, sweep=row, counts=counts[row.id])
        if row.group_id:
            return Entry(row.group_id, row, members=members[row.group_id])
        return Entry(row.id, row, num_evaluations=evaluations[row.id])

    return [entry(row) for row in rows]


# --- below an entry --------------------------------------------------------------------------------------------------


def num_evaluations(session: Session, job_ids: Sequence[str]) -> Counter[str]:
    """Return the number of evaluations below each job, with their retries and clones."""
    below = evaluations_below(job_ids)
    statement = select(below.c.root, func.count()).group_by(below.c.root)
    return Counter(dict(session.execute(statement).all()))


def jobs_below(session: Session, open_ids: Sequence[str]) -> dict[str, list[Job]]:
    """Return the jobs below jobs, seed groups and sweeps: evaluations, seeds, trials; the newest ones of many."""
    groups = select(Job.group_id.label("root"), Job.id.label("id")).where(Job.group_id.in_(open_ids))
    trials = select(Job.sweep_id.label("root"), Job.id.label("id")).where(Job.sweep_id.in_(open_ids))
    below = evaluations_below(open_ids)
    every = groups.union_all(trials, select(below.c.root, below.c.id)).subquery()
    place = func.row_number().over(partition_by=every.c.root, order_by=every.c.id.desc())
    newest = select(every.c.root, every.c.id, place.label("place")).subquery()
    statement = select(newest.c.root, Job).join(Job, Job.id == newest.c.id).where(newest.c.place <= MAX_BELOW)
    by_root: dict[str, list[Job]] = defaultdict(list)
    for root, job in session.execute(statement.order_by(Job.id)):
        by_root[root].append(job)
    return by_root


def knn_accuracies(session: Session, jobs: Iterable[Job]) -> dict[str, float]:
    """Return the kNN accuracy that evaluations have measured, by job."""
    ids = [job.id for job in jobs if job.kind == "evaluate"]
    statement = (
        select(JobEvaluation.job_id, Evaluation.value)
        .join(Evaluation, Evaluation.id == JobEvaluation.evaluation_id)
        .where(JobEvaluation.job_id.in_(ids), Evaluation.protocol == "knn", Evaluation.metric == "top1")
        .order_by(Evaluation.id)
    )
    return {job_id: value for job_id, value in session.execute(statement) if value is not None}


def evaluations_below(job_ids: Sequence[str]) -> Any:
    """Return the evaluations below jobs, at any depth: a retry of an evaluation is below that evaluation."""
    own = select(Job.parent_id.label("root"), Job.id.label("id"))
    below = own.where(Job.kind == "evaluate", Job.parent_id.in_(job_ids)).cte(recursive=True)
    further = select(below.c.root, Job.id).where(Job.kind == "evaluate", Job.parent_id == below.c.id)
    return below.union(further)


def _members(session: Session, group_ids: Sequence[str]) -> dict[str, list[Member]]:
    statement = select(Job.group_id, Job.id, Job.status, Job.latest_metrics, Job.progress)
    by_group: dict[str, list[Member]] = defaultdict(list)
    for group_id, job_id, status, metrics, progress in session.execute(
        statement.where(Job.group_id.in_(group_ids)).order_by(Job.id)
    ):
        done = 1.0 if status == "succeeded" else share_done(progress or {}) or 0.0
        by_group[group_id].append(Member(job_id, status, (metrics or {}).get(KNN_TOP1), done))
    return by_group


def _trial_counts(session: Session, sweep_ids: Sequence[str]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    statement = select(Job.sweep_id, Job.status, func.count()).where(Job.sweep_id.in_(sweep_ids))
    for sweep_id, status, count in session.execute(statement.group_by(Job.sweep_id, Job.status)):
        counts[str(sweep_id)][status] = count
    return counts


# --- sorted ----------------------------------------------------------------------------------------------------------


def sorted_jobs(
    session: Session, filters: Filters, sort: Sort, descending: bool, cursor: str | None, limit: int
) -> Page[Job]:
    """Return a page of the newest jobs that match, sorted.

    Raises:
        Invalid: the cursor is malformed.
    """
    newest = matching(session, _columns(), filters).order_by(Job.id.desc()).limit(WINDOW)
    keys = [_Key(*row[:7]) for row in session.execute(newest)]
    page = _part(_sorted(keys, sort, descending), cursor, limit)
    jobs = _by_id(session, Job, [key.id for key in page.items])
    return Page([jobs[key.id] for key in page.items], page.next_cursor)


@dataclass(frozen=True)
class Grouped:
    """A page of jobs that stand by the value of a field, and how many of the newest jobs have each value."""

    page: Page[Job]
    value_of: dict[str, str]  # by job
    counts: Counter[str]


def grouped_jobs(
    session: Session, filters: Filters, field: str, sort: Sort, descending: bool, cursor: str | None, limit: int
) -> Grouped:
    """Return a page of the newest jobs that match, by the value of a field, and then sorted or newest first.

    Args:
        session: a reading transaction.
        filters: the jobs.
        field: as `GROUP_FIELD` allows: a column of `_GROUP_COLUMNS`, or a field of the spec, such as
            `loss.temperature`.  A job that lacks it has the value `none`.
        sort, descending: the order within a value.
        cursor, limit: of the page.

    Raises:
        Invalid: the cursor is malformed.
    """
    column = _GROUP_COLUMNS.get(field)
    value = Job.spec[tuple(field.split("."))] if column is None else column
    newest = matching(session, _columns().add_columns(value), filters).order_by(Job.id.desc()).limit(WINDOW)
    rows = session.execute(newest).all()
    values = {row[0]: row[-1] for row in rows}
    keys = [_Key(*row[:7]) for row in rows]
    ordered = sorted(_sorted(keys, sort, descending) if sort else keys, key=lambda key: _place(values[key.id]))
    part = _part(ordered, cursor, limit)
    jobs = _by_id(session, Job, [key.id for key in part.items])
    value_of = {key.id: _value_text(values[key.id]) for key in ordered}
    return Grouped(Page([jobs[key.id] for key in part.items], part.next_cursor), value_of, Counter(value_of.values()))


def _place(value: Any) -> tuple[int, float, str]:
    """Return the place of a value: numbers, then texts, then jobs without one."""
    if value is None:
        return 2, 0, ""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, value, "") if is_number else (1, 0, _value_text(value).casefold())


def _value_text(value: Any) -> str:
    if value is None:
        return "none"
    return (value if isinstance(value, str) else json.dumps(value, sort_keys=True))[:200]


def _columns() -> Select[Any]:
    """Select the fields of a key, and the seed group."""
    return select(Job.id, literal(False), Job.name, Job.status, Job.dataset_name, _METHOD, _KNN, Job.group_id)


def _job_keys(session: Session) -> list[_Key]:
    """Return the keys of jobs and of seed groups, which have the mean accuracy of their jobs."""
    rows = session.execute(_listed(_columns()).order_by(Job.id.desc()).limit(WINDOW)).all()
    groups = [row.group_id for row in rows if row.group_id]
    means = select(Job.group_id, func.avg(_KNN)).where(Job.group_id.in_(groups)).group_by(Job.group_id)
    mean_of: dict[str | None, float | None] = dict(session.execute(means).all())
    keys = [(_Key(*row[:7]), row.group_id) for row in rows]
    return [key._replace(knn=mean_of[group_id]) if group_id else key for key, group_id in keys]


def _sweep_keys(session: Session) -> list[_Key]:
    columns = (Sweep.id, literal(True), Sweep.name, Sweep.status, Sweep.dataset_name, Sweep.search, Sweep.best_value)
    return [_Key(*row) for row in session.execute(select(*columns).order_by(Sweep.id.desc()).limit(WINDOW))]


_SORTED: Final[dict[str, Callable[[_Key], Any]]] = {
    "name": lambda key: key.name.casefold(),
    "status": lambda key: key.status,
    "method": lambda key: key.method,
    "dataset": lambda key: key.dataset.casefold(),
    "knn": lambda key: key.knn,
    "age": lambda key: key.id,
}


def _sorted(keys: Sequence[_Key], sort: Sort, descending: bool) -> list[_Key]:
    """Return the newest keys in order; those without a value are last, and equal ones are newest first."""
    newest = sorted(keys, key=lambda key: key.id, reverse=True)[:WINDOW]
    value = _SORTED[sort]
    having = [key for key in newest if value(key) is not None]
    # An age grows as an id falls.
    ordered = sorted(having, key=value, reverse=descending != (sort == "age"))
    return ordered + [key for key in newest if value(key) is None]


def _part(keys: Sequence[_Key], cursor: str | None, limit: int) -> Page[_Key]:
    """Return the keys from a place on; the cursor of a sorted list is that place."""
    if cursor and not (cursor.isascii() and cursor.isdecimal() and len(cursor) <= 6):
        raise Invalid([FieldError("cursor", "expected a cursor from the previous page")])
    first = int(cursor or 0)
    last = first + limit
    return Page(list(keys[first:last]), str(last) if len(keys) > last else None)
