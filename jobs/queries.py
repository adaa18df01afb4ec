"""Reads of jobs and of what belongs to them: short statements, no lazy loading, no counts over whole tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import ColumnElement, Select, case, func, literal, or_, select, tuple_, union_all
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from jobs import access, search
from jobs.database import now_ms, project_of, within
from jobs.errors import FieldError, Invalid, NotFound, existing
from jobs.models import (
    LISTED,
    Artifact,
    Attempt,
    Checkpoint,
    Dataset,
    Evaluation,
    Event,
    Job,
    JobEvaluation,
    Key,
    Log,
    Project,
    Tag,
    Worker,
)
from jobs.preemption import REQUESTED
from jobs.status import TERMINAL, Reason, Status

T = TypeVar("T")
Archived = Literal["", "only", "all"]
_KINDS = ("pretrain", "evaluate")
_MAX_INTEGER = 2**31 - 1  # PostgreSQL refuses to compare a column with a value outside its type

_LISTED_MS = 7 * 86_400_000  # for which a worker that has ended is listed
_MOST_WORKERS = 200
SEARCH = (  # a description for clients
    "Part of a name, an id or a dataset. One or two characters are looked for in the newest "
    f"{search.MOST_NEWEST:,} jobs."
)


@dataclass(frozen=True)
class Page(Generic[T]):
    """A page of a list, and the cursor of the next page."""

    items: list[T]
    next_cursor: str | None


@dataclass(frozen=True)
class Filters:
    """The filters of a list of jobs; an empty one keeps all.

    Attributes:
        status: only jobs in one of these states.
        kind: only jobs of this kind.
        tag: only jobs with this tag.
        q: text that name, id or dataset must contain.
        archived: whether archived jobs are left out, alone in the list (`only`), or in it (`all`).
        starred: only jobs with a star.
        by: only jobs of the key with this name or id.
        project: only jobs of the project with this name or id.
    """

    status: tuple[str, ...] = ()
    kind: str = ""
    tag: str = ""
    q: str = ""
    archived: Archived = ""
    starred: bool = False
    by: str = ""
    project: str = ""

    @property
    def are_set(self) -> bool:
        return self != Filters()


def get_job(session: Session, job_id: str, *, lock: bool = False) -> Job:
    """Return one job, locked against changes if requested.

    Raises:
        NotFound: there is no such job.
    """
    row = session.get(Job, job_id, with_for_update={"key_share": True} if lock else None)
    return existing(row, "job", job_id)


def list_jobs(
    session: Session,
    *,
    status: Sequence[str] = (),
    kind: str | None = None,
    tag: str | None = None,
    q: str | None = None,
    archived: Archived = "",
    starred: bool = False,
    by: str | None = None,
    project: str | None = None,
    folded: bool = False,
    cursor: str | None = None,
    limit: int = 50,
) -> Page[Job]:
    """Return a page of jobs, newest first.

    Args:
        session: a reading transaction.
        status: only jobs in one of these states; all states if empty.
        kind: only jobs of this kind.
        tag: only jobs with this tag.
        q: text that name, id or dataset must contain.
        archived, starred, by, project: as `Filters`.
        folded: whether evaluations of a training and trials of a sweep are left out.
        cursor: the last id of the previous page.
        limit: jobs of a page.

    Raises:
        Invalid: the cursor is malformed.
    """
    if cursor and len(cursor) != 36:
        raise Invalid([FieldError("cursor", "expected a cursor from the previous page")])

    def newest(*states: str) -> Select[Any]:
        filters = Filters(states, kind or "", tag or "", q or "", archived, starred, by or "", project or "")
        statement = matching(session, select(Job.id), filters)
        statement = statement.where(Job.id < cursor) if cursor else statement
        statement = statement.where(LISTED) if folded else statement
        return statement.order_by(Job.id.desc()).limit(limit + 1)

    # The newest ones of each state are a range of an index; several states at once would be sorted as a whole.
    parts = [newest(each).subquery() for each in status] or [newest().subquery()]
    ids = union_all(*(select(part.c.id) for part in parts))
    rows = select(Job).where(Job.id.in_(ids)).order_by(Job.id.desc()).limit(limit + 1)
    jobs = list(session.execute(rows).scalars())
    return Page(jobs[:limit], jobs[limit - 1].id if len(jobs) > limit else None)


def matching(session: Session, statement: Select[Any], filters: Filters) -> Select[Any]:
    """Restrict a statement about jobs to those that match."""
    if filters.archived != "all":
        is_archived = Job.archived_at.is_not(None)
        statement = statement.where(is_archived if filters.archived else ~is_archived)
    if filters.starred:
        statement = statement.where(Job.starred_at.is_not(None))
    if filters.status:
        statement = statement.where(Job.status.in_(filters.status))
    if filters.kind:
        statement = statement.where(Job.kind == filters.kind)
    if filters.tag:
        statement = statement.where(Job.id.in_(select(Tag.job_id).where(Tag.tag == filters.tag)))
    if filters.by:
        statement = statement.where(Job.created_by.in_(select(Key.id).where(_is_key(filters.by))))
    if filters.project:
        of_project = select(Project.id).where(_is_project(filters.project))
        statement = statement.where(Job.project_id.in_(of_project))
    if filters.q:
        statement = statement.where(search.matches(session, filters.q))
    return statement


def _is_key(by: str) -> ColumnElement[bool]:
    return or_(Key.id == by, Key.name == by)


def _is_project(name: str) -> ColumnElement[bool]:
    return or_(Project.id == name, Project.name == name)


def key_of(session: Session, by: str) -> str | None:
    """Return the id of the newest key with a name or id; None if there is none."""
    return session.execute(select(Key.id).where(_is_key(by)).order_by(Key.id.desc()).limit(1)).scalar_one_or_none()


def check_owner_filter(session: Session, by: str | None, pointer: str) -> None:
    """Check that there is a key with a name or id.

    Raises:
        Invalid: there is none.
    """
    if by and session.execute(select(Key.id).where(_is_key(by)).limit(1)).first() is None:
        raise Invalid([FieldError(pointer, f"no key has the name or id {by!r}; `wcl keys list --all` lists them")])


def check_filters(session: Session, filters: Filters, at: str = "") -> None:
    """Check that filters name what there can be, since an empty list would hide a slip.

    Args:
        session: a reading transaction.
        filters: of a list of jobs.
        at: the pointer of their object, up to the names of the fields.

    Raises:
        Invalid: a filter names a status, kind, key or project that there is not.
    """
    kinds = (filters.kind,) if filters.kind else ()
    for field, values, allowed in (("status", filters.status, tuple(Status)), ("kind", kinds, _KINDS)):
        if unknown := [each for each in values if each not in allowed]:
            raise Invalid([FieldError(f"{at}{field}", f"{unknown[0]!r} is no {field}; expected {', '.join(allowed)}")])
    check_owner_filter(session, filters.by, f"{at}by")
    of_name = select(Project.id).where(_is_project(filters.project)).limit(1)
    if filters.project and session.execute(of_name).first() is None:
        problem = f"no project has the name or id {filters.project!r}; `wcl projects` lists them"
        raise Invalid([FieldError(f"{at}project", problem)])


def belongings(session: Session, job_ids: Sequence[str]) -> dict[str, tuple[str | None, str]]:
    """Return the names of the key and of the project of jobs, by the id of the job."""
    statement = select(Job.id, Key.name, Project.name).outerjoin(Key, Key.id == Job.created_by)
    statement = statement.join(Project, Project.id == Job.project_id).where(Job.id.in_(job_ids))
    with within(session, None):  # a key of all projects may have submitted them
        return {job_id: (owner, project) for job_id, owner, project in session.execute(statement)}


def tags(session: Session, job_ids: Sequence[str]) -> dict[str, list[str]]:
    by_job: dict[str, list[str]] = {job_id: [] for job_id in job_ids}
    rows = session.execute(select(Tag.job_id, Tag.tag).where(Tag.job_id.in_(job_ids)).order_by(Tag.tag))
    for job_id, tag in rows:
        by_job[job_id].append(tag)
    return by_job


def attempts(session: Session, job_id: str) -> list[Attempt]:
    """Return the job's attempts, oldest first."""
    return list(session.execute(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)).scalars())


def are_events_removed(session: Session, job_id: str) -> bool:
    """Return whether the first event of a job is gone, as its age makes it (jobs.expiry)."""
    return session.get(Event, (job_id, 1)) is None


def events_after(session: Session, job_id: str, seq: int, limit: int = 500, until: int = _MAX_INTEGER) -> list[Event]:
    """Return the events after the number `seq` up to the number `until`, in order.

    A request to give way to a job that the transaction does not see says nothing of that job.
    """
    statement = select(Event).where(Event.job_id == job_id, Event.seq > min(seq, _MAX_INTEGER), Event.seq <= until)
    events = list(session.execute(statement.order_by(Event.seq).limit(limit)).scalars())
    ids = {event.data.get("job") for event in events if event.type == REQUESTED}
    if ids and project_of(session) is not None:
        seen = set(session.execute(select(Job.id).where(Job.id.in_(ids))).scalars())
        for event in events:
            if event.type == REQUESTED and event.data.get("job") not in seen:
                data = {name: value for name, value in event.data.items() if name != "job"}
                set_committed_value(event, "data", data)  # it is not stored
    return events


def logs(session: Session, job_id: str, after: tuple[int, int] | None = None, limit: int = 500) -> list[Log]:
    """Return log lines after (attempt, seq), in order; without `after`, the last `limit` lines."""
    statement = select(Log).where(Log.job_id == job_id)
    if after is None:
        newest = statement.order_by(Log.attempt.desc(), Log.seq.desc()).limit(limit)
        return list(session.execute(newest).scalars())[::-1]
    return logs_between(session, job_id, after, (_MAX_INTEGER, 0), limit)


def logs_between(
    session: Session, job_id: str, after: tuple[int, int], until: tuple[int, int], limit: int
) -> list[Log]:
    """Return log lines after one (attempt, seq) up to another, in order."""
    if after >= until:
        return []
    place = tuple_(Log.attempt, Log.seq)
    statement = select(Log).where(Log.job_id == job_id, place > (min(after[0], _MAX_INTEGER), after[1]), place <= until)
    return list(session.execute(statement.order_by(Log.attempt, Log.seq).limit(limit)).scalars())


def checkpoints(session: Session, job_id: str) -> list[Checkpoint]:
    """Return the job's files of both kinds that are not deleted, newest first; damaged ones are included."""
    statement = (
        select(Checkpoint)
        .where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
        .order_by(Checkpoint.step.desc(), Checkpoint.attempt.desc())
    )
    return list(session.execute(statement).scalars())


def get_checkpoint(session: Session, checkpoint_id: str) -> Checkpoint:
    """Return one checkpoint that is not deleted.

    Raises:
        NotFound: there is no such checkpoint.
    """
    checkpoint = session.get(Checkpoint, checkpoint_id)
    if checkpoint is None or checkpoint.deleted_at is not None:
        raise NotFound(f"there is no checkpoint {checkpoint_id!r}")
    return checkpoint


@dataclass(frozen=True)
class Measured:
    """The checkpoint that an evaluation measures, with the training that wrote it."""

    checkpoint_id: str
    step: int
    epoch: int
    job_id: str
    job_name: str
    job_status: str
    epochs: int

    @property
    def sentence(self) -> str:
        """Which checkpoint it is, and whether its training goes on, without a full stop."""
        text = f"the checkpoint of epoch {self.epoch:,} of {self.epochs:,} (step {self.step:,}) of {self.job_name}"
        if self.job_status == Status.PAUSED:
            return f"{text}, which is paused"
        return text if self.job_status in TERMINAL else f"{text}, which goes on"


def owner(session: Session, key_id: str | None) -> str | None:
    """Return the name of the key that submitted a job or a sweep; None if the row names none."""
    if (principal := access.principal_of(session)) is not None and principal.key_id == key_id:
        return principal.name
    if key_id is None:
        return None
    with within(session, None):  # a key of all projects may have submitted it
        return session.execute(select(Key.name).where(Key.id == key_id)).scalar_one_or_none()


def status_by(session: Session, job: Job) -> str | None:
    """Return who paused or cancelled a job; None for a job in another state, or if no person or key did it."""
    if job.status_reason != Reason.USER:
        return None
    of_status = select(Event.data).where(Event.job_id == job.id, Event.type == job.status)
    data = session.execute(of_status.order_by(Event.seq.desc()).limit(1)).scalar_one_or_none() or {}
    name: str | None = data.get("by")
    return name


def measured_checkpoint(session: Session, job: Job) -> Measured | None:
    """Return the checkpoint that an evaluation measures; None for other jobs, and for other features."""
    checkpoint_id = job.spec.get("features", {}).get("checkpoint_id")
    if job.kind != "evaluate" or checkpoint_id is None:
        return None
    statement = (
        select(Checkpoint.id, Checkpoint.step, Checkpoint.epoch, Job.id, Job.name, Job.status, Job.spec)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(Checkpoint.id == checkpoint_id)
    )
    row = session.execute(statement).first()
    if row is None:
        return None
    checkpoint_id, step, epoch, job_id, name, status, spec = row
    return Measured(checkpoint_id, step, epoch, job_id, name, status, spec.get("epochs", epoch))


def artifacts(session: Session, job_id: str) -> list[Artifact]:
    """Return the job's artifacts by name; if several attempts wrote a name, the newest attempt's."""
    statement = select(Artifact).where(Artifact.job_id == job_id).order_by(Artifact.name, Artifact.attempt)
    return list({artifact.name: artifact for artifact in session.execute(statement).scalars()}.values())


def get_artifact(session: Session, job_id: str, name: str) -> Artifact:
    """Return the newest attempt's artifact of a name.

    Raises:
        NotFound: no attempt wrote one.
    """
    named = select(Artifact).where(Artifact.job_id == job_id, Artifact.name == name)
    artifact = session.execute(named.order_by(Artifact.attempt.desc()).limit(1)).scalar_one_or_none()
    if artifact is None:
        raise NotFound(f"job {job_id} has no artifact {name}")
    return artifact


def evaluations(session: Session, job_id: str) -> list[Evaluation]:
    """Return the evaluations that the job measured, and those that other jobs measured on its checkpoints."""
    own = select(Checkpoint.sha256).where(Checkpoint.job_id == job_id)
    linked = select(JobEvaluation.evaluation_id).where(JobEvaluation.job_id == job_id)
    statement = (
        select(Evaluation)
        .where(or_(Evaluation.id.in_(linked), Evaluation.features_digest.in_(own)))
        .order_by(Evaluation.id)
    )
    return list(session.execute(statement).scalars())


def workers(session: Session, *, alive_only: bool = False) -> list[Worker]:
    """Return workers: live ones first, then newest first; those that stopped or were lost a week ago are left out."""
    return list(session.execute(_workers(alive_only)).scalars())


def workers_and_jobs(session: Session) -> list[tuple[Worker, str | None]]:
    """Return workers as `workers`, each with the id of its job if the transaction sees that."""
    jobs = _workers(alive_only=False).outerjoin(Job, Job.id == Worker.job_id).add_columns(Job.id)
    return [(worker, job_id) for worker, job_id in session.execute(jobs)]


def _workers(alive_only: bool) -> Select[Worker]:
    is_listed = Worker.is_live if alive_only else or_(Worker.is_live, Worker.seen_at > now_ms() - _LISTED_MS)
    is_gone = case((Worker.is_live, 0), else_=1)
    return select(Worker).where(is_listed).order_by(is_gone, Worker.id.desc()).limit(_MOST_WORKERS)


def datasets(session: Session) -> list[Dataset]:
    return list(session.execute(select(Dataset).order_by(Dataset.name)).scalars())


def get_dataset(session: Session, name: str) -> Dataset:
    """Return one dataset.

    Raises:
        NotFound: no worker has announced a dataset of this name.
    """
    row = session.execute(select(Dataset).where(Dataset.name == name)).scalar_one_or_none()
    return existing(row, "dataset", name)


def counts_by_status(session: Session) -> dict[str, Any]:
    """Return the number of jobs in each state that is not terminal: one index range each."""
    statement = select(Job.status, func.count()).where(Job.status.in_(("blocked", "queued", "running", "paused")))
    return dict(session.execute(statement.group_by(Job.status)).all())


def bounded_counts(session: Session, most: int) -> dict[str, int]:
    """Return the number of jobs in each state, and `most + 1` where there are more; 1 of those in a terminal state."""
    parts = [
        select(literal(str(status)).label("status"), Job.id)
        .where(Job.status == status)
        .limit(1 if status in TERMINAL else most + 1)
        .subquery()
        for status in Status
    ]
    jobs = union_all(*map(select, parts)).subquery()
    return dict(session.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status)).all())


def newest_states(session: Session, limit: int = 200) -> dict[str, tuple[Any, ...]]:
    """Return the parts of jobs that lists show, by id: of the newest jobs and of all running ones."""
    states = select(Job.id, Job.updated_at, Job.progress)
    newest = session.execute(states.order_by(Job.id.desc()).limit(limit)).all()
    running = session.execute(states.where(Job.status == "running")).all()
    return {row.id: (row.updated_at, row.progress) for row in (*newest, *running)}
