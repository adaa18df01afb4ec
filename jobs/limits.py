"""Limits of a key: waiting jobs, jobs that it submits within a minute, and devices that its jobs use at once.

A limit of the key replaces that of the service (jobs.policies).  Jobs that the service adds by itself, such as the next
trials of a sweep and planned evaluations, count where they were requested: a sweep as all its trainings.

A project has limits, too: waiting jobs, GPUs that its jobs use at once, and stored bytes.  Running jobs of a project
that stores too much continue: their checkpoints are stored, and further submissions are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlalchemy.orm import Session

from jobs import policies, usage
from jobs.database import database_time
from jobs.errors import Conflict, FieldError, Forbidden, Invalid, OverLimit
from jobs.models import SEES_HIDDEN, Job, Key, Policy, Project, Sweep
from jobs.queue import devices_of_job, gpus_of_job, job_queue
from jobs.status import Status
from wcl_core.text import counted, file_size

_WINDOW_MS = 60_000
_WAITING_SECONDS = 60  # after which a key with too many waiting jobs may try again
_ADVICE = "an administrator can raise the limit (`wcl keys change`)"
_ADVICE_OF_PROJECT = "an administrator of all projects can raise the limit (`wcl projects set"
WAITING = (Status.BLOCKED, Status.QUEUED, Status.PAUSED)


@dataclass(frozen=True)
class Limits:
    """The limits that hold for a key; None for none."""

    name: str
    waiting: int | None = None
    devices: int | None = None
    submissions: int | None = None


@dataclass(frozen=True)
class Quota:
    """The limits of a project; None for none."""

    name: str
    waiting: int | None = None
    gpus: int | None = None
    size: int | None = None


def limits_of(
    session: Session, owner: str | None, projects: Iterable[str] = (), *, is_locking: bool = False
) -> tuple[Limits, dict[str, Quota]]:
    """Return the limits of a key, and those of projects that have any, by id.

    Args:
        session: a transaction.
        owner: the id of the key.
        projects: ids.
        is_locking: whether to lock the key against its other submissions and claims.
    """
    of_key = (Key.name, Key.max_waiting, Key.max_devices, Key.max_submissions, Policy.name, Policy.value)
    of_project = (Project.id, Project.name, Project.max_waiting, Project.max_gpus, Project.max_bytes)
    has_any = or_(*(each.is_not(None) for each in of_project[2:]))
    statement = select(*of_key, *of_project).select_from(Key).where(Key.id == owner)
    statement = statement.outerjoin(Policy, Policy.name.in_(policies.NAMES))
    statement = statement.outerjoin(Project, and_(Project.id.in_(projects), has_any))
    if is_locking:
        statement = statement.with_for_update(key_share=True, of=Key)
    rows = session.execute(statement).all()
    if not rows:
        return Limits(""), {}
    name, waiting, devices, submissions = rows[0][:4]
    rules = policies.of_rows({policy: value for policy, value in (row[4:6] for row in rows) if policy is not None})

    def either(own: int | None, default: int | None) -> int | None:
        return default if own is None else own

    limits = Limits(
        name,
        either(waiting, rules.key_waiting),
        either(devices, rules.key_devices),
        either(submissions, rules.key_submissions),
    )
    return limits, {row[6]: Quota(*row[7:]) for row in rows if row[6] is not None}


def check_submission(session: Session, owner: str, counts: Mapping[str, int]) -> None:
    """Check that a key may have submitted the jobs that the transaction has added; the last step before its commit.

    Args:
        session: a writing transaction, with the rows of the new jobs.
        owner: the id of the key.
        counts: number of new jobs by the id of their project; of a sweep, that of its trainings.

    Raises:
        Invalid: a job needs more devices than the key may use, or more GPUs than the project may.
        Forbidden: the request has more jobs than the key may ever submit at once, or than may ever wait.
        OverLimit: the key has submitted too many jobs, or the key or a project has too many waiting ones.
        Conflict: a project stores too many bytes.
    """
    limits, quotas = limits_of(session, owner, counts)
    if limits != Limits(limits.name):
        limits, _ = limits_of(session, owner, is_locking=True)  # a concurrent submission is visible from here on
        _check_key(session, owner, sum(counts.values()), limits)
    if quotas:
        session.execute(_locked(quotas))  # as above
    for project_id, quota in quotas.items():
        _check_quota(session, owner, counts[project_id], project_id, quota)


def _check_key(session: Session, owner: str, count: int, limits: Limits) -> None:
    subject = f"the key {limits.name}"
    if limits.devices is not None:
        most = _most(session, devices_of_job(), Job.created_by == owner)
        if most > limits.devices:
            detail = f"the job needs {most} devices, and {subject} may use {counted(limits.devices, 'device')} at once"
            raise Invalid([FieldError("/gpus", f"{detail}; use fewer, or {_ADVICE}")])
    if limits.submissions is not None:
        _check_submissions(session, owner, count, limits.name, limits.submissions)
    if limits.waiting is not None:
        num_waiting = partial(waiting, session, Job.created_by == owner, Sweep.created_by == owner)
        _check_waiting(num_waiting, count, limits.waiting, subject, _ADVICE)


def _check_quota(session: Session, owner: str, count: int, project_id: str, quota: Quota) -> None:
    subject, advice = f"the project {quota.name}", f"{_ADVICE_OF_PROJECT} {quota.name}`)"
    if quota.gpus is not None:
        most = _most(session, gpus_of_job(), Job.created_by == owner, Job.project_id == project_id)
        if most > quota.gpus:
            detail = f"the job needs {counted(most, 'GPU')}, and {subject} may use {quota.gpus} at once"
            raise Invalid([FieldError("/gpus", f"{detail}; use fewer, or {advice}")])
    if quota.size is not None and (size := usage.size_of(session, project_id)) >= quota.size:
        detail = f"{subject} stores {file_size(size)}, and may store {file_size(quota.size)}"
        raise Conflict(f"{detail}; delete checkpoints or jobs (`wcl storage` shows the largest), or {advice}")
    if quota.waiting is not None:
        num_waiting = partial(waiting, session, Job.project_id == project_id, Sweep.project_id == project_id)
        _check_waiting(num_waiting, count, quota.waiting, subject, advice)


def _most(session: Session, number: ColumnElement[int], *conditions: ColumnElement[bool]) -> int:
    """Return the largest number of waiting jobs of the last minute."""
    is_new = Job.created_at >= database_time(session) - _WINDOW_MS
    largest = select(func.max(number)).where(Job.status.in_(WAITING), is_new, *conditions)
    return session.execute(largest).scalar_one() or 0


def _check_submissions(session: Session, owner: str, count: int, name: str, limit: int) -> None:
    may = f"the key {name} may submit {counted(limit, 'job')} a minute"
    if count > limit:
        raise Forbidden(f"{may}, and this request has {count}; send fewer at once, or {_ADVICE}")
    now = database_time(session)
    sent = _submitted_since(session, owner, now - _WINDOW_MS)
    surplus = sum(number for _, number in sent) - limit
    for at, number in sent:
        if surplus <= 0:
            return
        surplus -= number
        if surplus <= 0:
            seconds = max(1, math.ceil((at + _WINDOW_MS - now) / 1000))
            detail = f"{may}, and this would be more; try again in {seconds} s, or {_ADVICE}"
            raise OverLimit(detail, seconds)


def _submitted_since(session: Session, owner: str, since: int) -> list[tuple[int, int]]:
    """Return (time, number of jobs) of what a key has submitted, oldest first."""
    jobs = select(Job.created_at).where(Job.created_by == owner, Job.created_at > since, Job.origin.is_(None))
    sweeps = select(Sweep).where(Sweep.created_by == owner, Sweep.created_at > since)
    times = [(at, 1) for at in session.execute(jobs, execution_options=SEES_HIDDEN).scalars()]
    return sorted([*times, *((each.created_at, _runs_of(each)) for each in session.execute(sweeps).scalars())])


def _check_waiting(waiting: Callable[[], int], count: int, limit: int, subject: str, advice: str) -> None:
    may = f"{subject} may have {counted(limit, 'waiting job')}"
    if count > limit:
        raise Forbidden(f"{may}, and this request has {count} jobs; send fewer at once, or {advice}")
    if (num_waiting := waiting()) > limit:
        others = counted(max(0, num_waiting - count), "other")
        detail = f"{may}, and {others} already wait; submit again when some have started, cancel some, or {advice}"
        raise OverLimit(detail, _WAITING_SECONDS)


def waiting(session: Session, jobs: ColumnElement[bool], sweeps: ColumnElement[bool]) -> int:
    """Return the number of waiting jobs that meet a condition, with those that sweeps have yet to add."""
    own = select(func.count()).where(jobs, Job.status.in_(WAITING))
    running = select(Sweep).where(sweeps, Sweep.status == Status.RUNNING)
    to_come = 0
    for sweep in session.execute(running).scalars():
        added = select(func.count()).where(Job.sweep_id == sweep.id, Job.kind == "pretrain")
        to_come += max(0, _runs_of(sweep) - session.execute(added).scalar_one())
    return session.execute(own).scalar_one() + to_come


def excess_of_key(session: Session, key_id: str) -> str | None:
    """Return what a key has beyond its limits, a sentence without a full stop; None if it keeps them."""
    limits, _ = limits_of(session, key_id)
    devices = job_queue(session).use_of(key_id).devices
    num_waiting = waiting(session, Job.created_by == key_id, Sweep.created_by == key_id)
    parts = (_running(devices, limits.devices, "device"), _waiting(num_waiting, limits.waiting))
    return _joined(f"the key {limits.name}", parts)


def excess_of_project(session: Session, project_id: str) -> str | None:
    """Return what a project has beyond its limits, as `excess_of_key`."""
    project = session.get_one(Project, project_id)
    gpus = job_queue(session).use_of_project(project_id).devices
    num_waiting = waiting(session, Job.project_id == project_id, Sweep.project_id == project_id)
    size = 0 if project.max_bytes is None else usage.size_of(session, project_id)
    is_over = project.max_bytes is not None and size > project.max_bytes
    stored = f"stores {file_size(size)}, {file_size(size - (project.max_bytes or 0))} over its limit, which stay"
    parts = (
        _running(gpus, project.max_gpus, "GPU"),
        _waiting(num_waiting, project.max_waiting),
        stored if is_over else None,
    )
    return _joined(f"the project {project.name}", parts)


def _running(number: int, limit: int | None, noun: str) -> str | None:
    if limit is None or number <= limit:
        return None
    return f"uses {counted(number, noun)}, {number - limit:,} over its limit, until its running jobs end"


def _waiting(number: int, limit: int | None) -> str | None:
    if limit is None or number <= limit:
        return None
    return f"has {counted(number, 'waiting job')}, {number - limit:,} over its limit, which stay"


def _joined(subject: str, parts: Iterable[str | None]) -> str | None:
    texts = [part for part in parts if part is not None]
    return f"{subject} {'; it '.join(texts)}" if texts else None


def _locked(project_ids: Iterable[str]) -> Select[str]:
    """Return the query that locks projects, in one order, against submissions and claims within their limits."""
    return select(Project.id).where(Project.id.in_(project_ids)).order_by(Project.id).with_for_update(key_share=True)


def _runs_of(sweep: Sweep) -> int:
    return sum(int(rung["trials"]) for rung in sweep.rungs) * len(sweep.seeds)


def has_room(session: Session, job: Job) -> bool:
    """Return whether the key and the project of a job may use its devices, too.

    Until the commit no other job of the key, or with GPUs of the project, gets any: two workers may see the last free
    device of a limit at once; here one waits for the commit of the other.
    """
    queue = job_queue(session)
    of_key = queue.use_of(job.created_by).limit is not None
    of_project = job.gpus > 0 and queue.use_of_project(job.project_id).limit is not None
    if of_key:
        session.execute(select(Key.id).where(Key.id == job.created_by).with_for_update(key_share=True))
    if of_project:
        session.execute(_locked([job.project_id]))
    if of_key or of_project:
        queue = job_queue(session, is_fresh=True)
    room, gpus = queue.use_of(job.created_by).room, queue.use_of_project(job.project_id).room
    num_gpus = job.gpus * job.nodes
    return (room is None or max(1, num_gpus) <= room) and (gpus is None or num_gpus <= max(0, gpus))
