"""Limits of a key: waiting jobs, jobs that it submits within a minute, and devices that its jobs use at once.

A limit of the key replaces that of the service (jobs.policies).  Jobs that the service adds by itself, such as the next
trials of a sweep and planned evaluations, count where they were requested: a sweep as all its trainings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs import policies
from jobs.database import database_time
from jobs.errors import FieldError, Forbidden, Invalid, OverLimit
from jobs.models import SEES_HIDDEN, Job, Key, Policy, Sweep
from jobs.queue import devices_of_job, job_queue
from jobs.status import Status
from wcl_core.text import counted

_WINDOW_MS = 60_000
_WAITING_SECONDS = 60  # after which a key with too many waiting jobs may try again
_ADVICE = "an administrator can raise the limit (`wcl keys change`)"
WAITING = (Status.BLOCKED, Status.QUEUED, Status.PAUSED)


@dataclass(frozen=True)
class Limits:
    """The limits that hold for a key; None for none."""

    name: str
    waiting: int | None = None
    devices: int | None = None
    submissions: int | None = None


def limits_of(session: Session, owner: str | None, *, is_locking: bool = False) -> Limits:
    """Return the limits of a key, locked against other submissions and claims of this key if requested."""
    columns = (Key.name, Key.max_waiting, Key.max_devices, Key.max_submissions, Policy.name, Policy.value)
    statement = select(*columns).outerjoin(Policy, Policy.name.in_(policies.NAMES)).where(Key.id == owner)
    if is_locking:
        statement = statement.with_for_update(key_share=True, of=Key)
    rows = session.execute(statement).all()
    if not rows:
        return Limits("")
    name, waiting, devices, submissions, *_ = rows[0]
    rules = policies.of_rows({policy: value for *_, policy, value in rows if policy is not None})

    def either(own: int | None, default: int | None) -> int | None:
        return default if own is None else own

    return Limits(
        name,
        either(waiting, rules.key_waiting),
        either(devices, rules.key_devices),
        either(submissions, rules.key_submissions),
    )


def check_submission(session: Session, owner: str, count: int) -> None:
    """Check that a key may have submitted the jobs that the transaction has added; the last step before its commit.

    Args:
        session: a writing transaction, with the rows of the new jobs.
        owner: the id of the key.
        count: number of new jobs; of a sweep, that of its trainings.

    Raises:
        Invalid: a job needs more devices than the key may use.
        Forbidden: the request has more jobs than the key may ever submit at once.
        OverLimit: the key has submitted too many jobs, or has too many waiting ones.
    """
    limits = limits_of(session, owner)
    if limits == Limits(limits.name):
        return
    limits = limits_of(session, owner, is_locking=True)  # a concurrent submission is visible from here on
    if limits.devices is not None:
        _check_devices(session, owner, limits.name, limits.devices)
    if limits.submissions is not None:
        _check_submissions(session, owner, count, limits.name, limits.submissions)
    if limits.waiting is not None:
        _check_waiting(session, owner, count, limits.name, limits.waiting)


def _check_devices(session: Session, owner: str, name: str, limit: int) -> None:
    beyond = select(func.max(devices_of_job())).where(Job.status.in_(WAITING), Job.created_by == owner)
    most = session.execute(beyond.where(Job.created_at >= database_time(session) - _WINDOW_MS)).scalar_one() or 0
    if most > limit:
        detail = f"the job needs {most} devices, and the key {name} may use {counted(limit, 'device')} at once; "
        raise Invalid([FieldError("/gpus", f"{detail}use fewer, or {_ADVICE}")])


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


def _check_waiting(session: Session, owner: str, count: int, name: str, limit: int) -> None:
    may = f"the key {name} may have {counted(limit, 'waiting job')}"
    if count > limit:
        raise Forbidden(f"{may}, and this request has {count} jobs; send fewer at once, or {_ADVICE}")
    if (num_waiting := waiting(session, owner)) > limit:
        others = counted(max(0, num_waiting - count), "other")
        detail = f"{may}, and {others} already wait; submit again when some have started, cancel some, or {_ADVICE}"
        raise OverLimit(detail, _WAITING_SECONDS)


def waiting(session: Session, owner: str) -> int:
    """Return the number of waiting jobs of a key, with those that its sweeps have yet to add."""
    own = select(func.count()).where(Job.created_by == owner, Job.status.in_(WAITING))
    sweeps = select(Sweep).where(Sweep.created_by == owner, Sweep.status == Status.RUNNING)
    to_come = 0
    for sweep in session.execute(sweeps).scalars():
        added = select(func.count()).where(Job.sweep_id == sweep.id, Job.kind == "pretrain")
        to_come += max(0, _runs_of(sweep) - session.execute(added).scalar_one())
    return session.execute(own).scalar_one() + to_come


def _runs_of(sweep: Sweep) -> int:
    return sum(int(rung["trials"]) for rung in sweep.rungs) * len(sweep.seeds)


def has_room(session: Session, job: Job) -> bool:
    """Return whether the key of a job may use its devices, too; until the commit no other job of the key gets any.

    Two workers may see the last free device of a limit at once; here one waits for the commit of the other.
    """
    if job_queue(session).use_of(job.created_by).limit is None:
        return True
    session.execute(select(Key.id).where(Key.id == job.created_by).with_for_update(key_share=True))
    room = job_queue(session, is_fresh=True).use_of(job.created_by).room
    return room is None or max(1, job.gpus * job.nodes) <= room
