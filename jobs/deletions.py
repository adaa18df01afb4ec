"""Deletion of jobs, and its undo.

    delete    hides a job and the evaluations below it, and adds a `Deletion` for each: the record that always stays
    restore   shows them again, as long as their purge has not begun
    purge     removes files and rows some days later (jobs.purge)

A running job is not deleted, nor one of which an unfinished job needs the success or a checkpoint.  A waiting job is
cancelled first.  Jobs that continue from a deleted one keep its id and, by its `Deletion`, its name.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Integer, Select, Update, and_, cast, func, or_, select, update
from sqlalchemy.orm import Session

from jobs import access, activity, checkpoints, listing, needs, transitions
from jobs.database import database_time, new_id, now_ms, within
from jobs.errors import Conflict, NotFound
from jobs.events import record
from jobs.keys import Principal
from jobs.models import (
    SEES_HIDDEN,
    Artifact,
    Checkpoint,
    Deletion,
    Evaluation,
    Job,
    JobEvaluation,
    Sweep,
)
from jobs.status import TERMINAL, Status

AT_ONCE = 100  # jobs of one transaction
_MOST_NAMED = 20  # jobs that continue from deleted ones


@dataclass(frozen=True)
class Refusal:
    """A job that is not deleted, and why."""

    job_id: str
    name: str
    reason: str


@dataclass(frozen=True)
class Related:
    """A job or a sweep that a deletion concerns."""

    id: str
    name: str


@dataclass
class Extent:
    """What a deletion removes, and what refers to it.

    Attributes:
        jobs: the requested jobs that are deleted.
        num_evaluation_jobs: the evaluations below them, which are deleted with them.
        num_waiting: those of both that are cancelled first.
        num_checkpoints, num_pinned: of their checkpoints; `size` is that of all files, in bytes.
        num_results: values that only these jobs have measured.
        continued_by: other jobs that started from one of them; at most 20.
        sweeps: ended sweeps that lose trials.
        num_seed_groups: seed groups that lose jobs.
        refused: the requested jobs that are not deleted.
    """

    jobs: list[Related] = field(default_factory=list)
    num_evaluation_jobs: int = 0
    num_waiting: int = 0
    num_checkpoints: int = 0
    num_pinned: int = 0
    size: int = 0
    num_results: int = 0
    continued_by: list[Related] = field(default_factory=list)
    sweeps: list[Related] = field(default_factory=list)
    num_seed_groups: int = 0
    refused: list[Refusal] = field(default_factory=list)

    def add(self, other: Extent) -> None:
        """Add the extent of the next transaction of the same request."""
        for name in ("jobs", "refused", "continued_by", "sweeps"):
            mine = getattr(self, name)
            mine += [each for each in getattr(other, name) if each not in mine]
        del self.continued_by[_MOST_NAMED:]
        names = ("evaluation_jobs", "waiting", "checkpoints", "pinned", "results", "seed_groups")
        for name in ("size", *(f"num_{name}" for name in names)):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def extent(session: Session, job_ids: Sequence[str], before: Collection[str] = ()) -> Extent:
    """Return what `delete` would do, without doing it; the number of statements does not depend on that of the jobs.

    Args:
        session: a reading transaction.
        job_ids: at most `AT_ONCE`.
        before: jobs that the same request would have deleted before.
    """
    return _extent(session, _family(session, job_ids, before, lock=False))


def delete(session: Session, job_ids: Sequence[str], by: Principal) -> Extent:
    """Delete those of the jobs that nothing needs, each with its evaluations; at most `AT_ONCE` jobs."""
    family = _family(session, job_ids, (), lock=True)
    result = _extent(session, family)
    for job in family.members():  # newest first, so that no cancelled job makes one that waits for it fail
        if job.status not in TERMINAL:
            transitions.cancel_below(session, job.id)
    _record(session, family, by)
    _hide(session, [job.id for job in family.members()])
    return result


def restore(session: Session, job_id: str, by: Principal) -> list[str]:
    """Show a deleted job and the evaluations that were deleted with it again; return their ids.

    Raises:
        NotFound: there is no such deleted job.
        Conflict: its removal has begun, or it was deleted with another job.
    """
    is_open = and_(Deletion.restored_at.is_(None), Deletion.purged_at.is_(None))
    of_job = or_(Deletion.root_id == job_id, Deletion.job_id == job_id)
    records = session.execute(select(Deletion).where(is_open, of_job).with_for_update()).scalars().all()
    if not records:
        raise NotFound(f"there is no deleted job {job_id!r} that can be restored")
    if (root := next((each.root_id for each in records if each.root_id != job_id), None)) is not None:
        raise Conflict(f"job {job_id} was deleted with job {root}; restore that one")
    if any(each.purge_began_at is not None for each in records):
        raise Conflict(f"the files of job {job_id} are being removed; it cannot be restored any more")
    _check_parent(session, job_id)
    ids = [each.job_id for each in records]
    linked = select(JobEvaluation.evaluation_id).where(JobEvaluation.job_id.in_(ids))
    for statement in (
        update(Job).where(Job.id.in_(ids)).values(hidden_at=None, updated_at=now_ms()),
        update(Checkpoint).where(Checkpoint.job_id.in_(ids)).values(hidden_at=None),
        update(Evaluation).where(Evaluation.id.in_(linked)).values(hidden_at=None),
    ):
        _change(session, statement)
    noted = update(Deletion).where(Deletion.id.in_([each.id for each in records]))
    _change(session, noted.values(restored_at=now_ms(), restored_by=by.key_id, restored_by_name=by.name))
    for each in records:
        record(session, each.job_id, "restored", {})
        activity.note(session, "job.restore", each.job_id, each.job_name, by=by)
    return ids


def _check_parent(session: Session, job_id: str) -> None:
    """Raise Conflict for an evaluation whose training is deleted: it would be in no list."""
    parent = select(Job.parent_id).where(Job.id == job_id, Job.kind == "evaluate").scalar_subquery()
    hidden = select(Job.id).where(Job.id == parent, Job.hidden_at.is_not(None))
    if (above := session.execute(hidden, execution_options=SEES_HIDDEN).scalar_one_or_none()) is not None:
        raise Conflict(f"job {job_id} evaluates job {above}, which is deleted, too; restore that one first")


def records(session: Session, limit: int = 1_000) -> list[Deletion]:
    """Return the newest deletions, newest first."""
    return list(session.execute(select(Deletion).order_by(Deletion.id.desc()).limit(limit)).scalars())


def name_of(session: Session, job_id: str) -> str | None:
    """Return the name that a deleted job had; None for an id that no deletion names."""
    newest = select(Deletion.job_name).where(Deletion.job_id == job_id).order_by(Deletion.id.desc()).limit(1)
    return session.execute(newest).scalar_one_or_none()


# --- which jobs ------------------------------------------------------------------------------------------------------


@dataclass
class _Family:
    """Requested jobs, newest first, each with the evaluations below it; those that are refused have left it."""

    of_root: dict[str, list[Job]]
    refused: list[Refusal] = field(default_factory=list)

    def members(self) -> list[Job]:
        """Return all jobs that are deleted, newest first."""
        by_id = {job.id: job for jobs in self.of_root.values() for job in jobs}
        return [by_id[job_id] for job_id in sorted(by_id, reverse=True)]

    def refuse(self, root: str, reason: str) -> None:
        self.refused.append(Refusal(root, self.of_root.pop(root)[0].name, reason))


def _family(session: Session, job_ids: Sequence[str], before: Collection[str], lock: bool) -> _Family:
    jobs = _jobs(session, job_ids, lock)
    roots = sorted(jobs, reverse=True)
    trainings = [job_id for job_id in roots if jobs[job_id].kind != "evaluate"]
    tree = listing.evaluations_below(trainings)
    below = session.execute(select(tree.c.root, tree.c.id)).all() if trainings else []
    jobs |= _jobs(session, [row.id for row in below if row.id not in jobs], lock)
    absent = [Refusal(job_id, "", "there is no such job") for job_id in sorted(set(job_ids) - set(roots))]
    family = _Family({root: [jobs[root]] for root in roots}, absent)
    for root, job_id in below:
        if job_id in jobs:
            family.of_root[root].append(jobs[job_id])
    for root in [root for root, members in family.of_root.items() if not _is_own(session, members[0])]:
        family.refuse(root, "it is of another key; only that key or one with `admin` may delete it")
    _refuse_busy(session, family, lock)
    _refuse_needed(session, family, before, lock)
    return family


def _is_own(session: Session, job: Job) -> bool:
    return access.may_change(session, job.created_by)


def _jobs(session: Session, ids: Sequence[str], lock: bool) -> dict[str, Job]:
    """Return jobs by id, locked in the order of their ids if requested."""
    statement = select(Job).where(Job.id.in_(ids)).order_by(Job.id)
    statement = statement.with_for_update() if lock else statement
    return {job.id: job for job in session.execute(statement).scalars()} if ids else {}


def _refuse_busy(session: Session, family: _Family, lock: bool) -> None:
    """Refuse jobs that run, or whose evaluation runs, and trials of a sweep that goes on."""
    sweep_ids = {job.sweep_id for job in family.members() if job.sweep_id}
    going_on = select(Sweep.id, Sweep.name).where(Sweep.id.in_(sweep_ids), Sweep.status == Status.RUNNING)
    going_on = going_on.with_for_update(read=True) if lock else going_on
    names: dict[str | None, str] = dict(session.execute(going_on).all()) if sweep_ids else {}
    for root, jobs in list(family.of_root.items()):
        if jobs[0].status == Status.RUNNING:
            family.refuse(root, "it runs; cancel it first")
        elif running := [job for job in jobs if job.status == Status.RUNNING]:
            which = f"{running[0].name} ({running[0].id[-12:]})"
            family.refuse(root, f"{which}, which evaluates it, runs; cancel that one first")
        elif (sweep_id := jobs[0].sweep_id) in names:
            family.refuse(root, f"the sweep {names[sweep_id]} ({sweep_id}) goes on; cancel it first")


def _refuse_needed(session: Session, family: _Family, before: Collection[str], lock: bool) -> None:
    """Refuse jobs of which an unfinished job needs the success or a checkpoint, unless that one is deleted as well."""
    ids = [job.id for job in family.members()]
    if not ids:
        return
    own = select(Checkpoint).where(Checkpoint.job_id.in_(ids), Checkpoint.deleted_at.is_(None)).order_by(Checkpoint.id)
    # A new job that needs a checkpoint holds its row, and finds it hidden afterwards.
    files = session.execute(own.with_for_update() if lock else own).scalars().all()
    writers = {name: row.job_id for row in files for name in checkpoints.names_of([row])}
    uses = [(each, writers[each.needed]) for each in needs.of_files(session, writers)]
    uses += [(each, each.needed) for each in needs.of_jobs(session, ids)]
    while True:  # a refused job may need another one of them
        members = {*before, *(job.id for job in family.members())}
        blocked = {job_id: need.user for need, job_id in uses if job_id in members and need.user_id not in members}
        roots = [root for root, jobs in family.of_root.items() if any(job.id in blocked for job in jobs)]
        if not roots:
            return
        for root in roots:
            user = next(blocked[job.id] for job in family.of_root[root] if job.id in blocked)
            family.refuse(root, f"{user} has not ended and needs it; cancel or delete that one first")


# --- what is deleted -------------------------------------------------------------------------------------------------


def _extent(session: Session, family: _Family) -> Extent:
    members, roots = family.members(), set(family.of_root)
    ids = [job.id for job in members]
    result = Extent(refused=sorted(family.refused, key=lambda each: each.job_id, reverse=True))
    if not ids:
        return result
    result.jobs = [Related(job.id, job.name) for job in members if job.id in roots]
    result.num_evaluation_jobs = len(ids) - len(roots)
    result.num_waiting = sum(job.status not in TERMINAL for job in members)
    files = _files(session, ids)
    result.num_checkpoints = sum(count for count, _, _ in files.values())
    result.num_pinned = sum(pinned for _, pinned, _ in files.values())
    result.size = sum(size for _, _, size in files.values())
    only = select(func.count()).select_from(Evaluation).where(Evaluation.id.in_(_linked(ids)), ~_is_shared(ids))
    with within(session, None):  # a job of another project may have measured the same value
        result.num_results = session.execute(only).scalar_one()
    result.continued_by = _continued_by(session, ids)
    sweep_ids = {job.sweep_id for job in members if job.sweep_id}
    lists = select(Sweep.id, Sweep.name).where(Sweep.id.in_(sweep_ids)).order_by(Sweep.id)
    result.sweeps = [Related(*row) for row in session.execute(lists)] if sweep_ids else []
    result.num_seed_groups = len({job.group_id for job in members if job.group_id})
    return result


def _files(session: Session, ids: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Return the number of checkpoints, that of pinned ones, and the bytes of all files, by job."""
    pinned = func.coalesce(func.sum(cast(Checkpoint.pinned, Integer)), 0)
    columns = (Checkpoint.job_id, func.count(), pinned, func.sum(Checkpoint.size))
    kept = select(*columns).where(Checkpoint.job_id.in_(ids), Checkpoint.deleted_at.is_(None))
    by_job = {job_id: (n, int(pins), int(size)) for job_id, n, pins, size in session.execute(kept.group_by(columns[0]))}
    shown = select(Artifact.job_id, func.sum(Artifact.size)).where(Artifact.job_id.in_(ids)).group_by(Artifact.job_id)
    for job_id, size in session.execute(shown):
        count, pins, others = by_job.get(job_id, (0, 0, 0))
        by_job[job_id] = (count, pins, others + int(size))
    return by_job


def _continued_by(session: Session, ids: Sequence[str]) -> list[Related]:
    """Return other jobs that started from one of the jobs, newest first."""
    own = select(Checkpoint.id).where(Checkpoint.job_id.in_(ids))
    digests = select(Checkpoint.sha256).where(Checkpoint.job_id.in_(ids))
    started = or_(Job.resume_checkpoint_id.in_(own), Job.spec["weights"].as_string().in_(digests))
    statement = select(Job.id, Job.name).where(Job.id.not_in(ids), Job.kind == "pretrain", started)
    return [Related(*row) for row in session.execute(statement.order_by(Job.id.desc()).limit(_MOST_NAMED))]


def _linked(ids: Sequence[str]) -> Select[str]:
    return select(JobEvaluation.evaluation_id).where(JobEvaluation.job_id.in_(ids))


def _is_shared(ids: Sequence[str]) -> ColumnElement[bool]:
    """Return the condition for a value that another visible job has measured, too."""
    others = select(JobEvaluation.job_id).join(Job, Job.id == JobEvaluation.job_id)
    is_visible = (Job.id.not_in(ids), Job.hidden_at.is_(None))  # stated, because `_hide` sees hidden jobs
    return others.where(JobEvaluation.evaluation_id == Evaluation.id, *is_visible).exists()


# --- the change ------------------------------------------------------------------------------------------------------


def _record(session: Session, family: _Family, by: Principal) -> None:
    members = family.members()
    files = _files(session, [job.id for job in members])
    root_of = {job.id: root for root, jobs in family.of_root.items() for job in jobs}
    root_of |= {root: root for root in family.of_root}  # an evaluation that was requested by itself as well
    at = database_time(session)
    for job in members:
        count, _, size = files.get(job.id, (0, 0, 0))
        session.add(
            Deletion(
                id=new_id(),
                project_id=job.project_id,
                job_id=job.id,
                root_id=root_of[job.id],
                job_name=job.name,
                job_kind=job.kind,
                num_checkpoints=count,
                size=size,
                deleted_by=by.key_id,
                deleted_by_name=by.name,
                deleted_at=at,
            )
        )
        activity.note(session, "job.delete", job.id, job.name, by=by)
    session.flush()


def _hide(session: Session, ids: Sequence[str]) -> None:
    """Hide jobs, their checkpoints, and the values that only they have measured."""
    if not ids:
        return
    parents = dict(session.execute(select(Job.id, Job.parent_id).where(Job.id.in_(ids), Job.kind == "evaluate")).all())
    for job_id, parent_id in parents.items():  # a retry of an evaluation stands below the training from now on
        retries = update(Job).where(Job.parent_id == job_id, Job.kind == "evaluate", Job.id.not_in(ids))
        _change(session, retries.values(parent_id=parent_id))
    _change(session, update(Checkpoint).where(Checkpoint.job_id.in_(ids)).values(hidden_at=now_ms()))
    # The lock comes first: a run that measures the same value now holds the row until it has linked it.
    session.execute(select(Evaluation.id).where(Evaluation.id.in_(_linked(ids))).with_for_update()).all()
    values = update(Evaluation).where(Evaluation.id.in_(_linked(ids)), ~_is_shared(ids))
    with within(session, None):  # also jobs of other projects that have measured the value
        _change(session, values.values(hidden_at=now_ms()))
    _change(session, update(Job).where(Job.id.in_(ids)).values(hidden_at=now_ms(), updated_at=now_ms()))


def _change(session: Session, statement: Update) -> None:
    session.execute(statement, execution_options=SEES_HIDDEN | {"synchronize_session": False})
