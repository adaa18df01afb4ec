"""Requests about many jobs at once, such as cancel: each job by its own transition, some in a transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, true
from sqlalchemy.orm import Session

from jobs import access, queries, submission, transitions
from jobs.errors import Conflict, Forbidden, NotFound
from jobs.models import Job
from jobs.queries import Filters
from jobs.status import TERMINAL, Status

Verb = Literal["cancel", "pause", "resume", "archive", "unarchive"]
AT_ONCE: Final = 100  # jobs of one transaction
MOST: Final = 1_000  # jobs of one request


class _Request(NamedTuple):
    """A transition of one job, and the condition for the jobs that it changes."""

    act: Callable[[Session, str], None]
    is_possible: ColumnElement[bool]


_REQUESTS: Final[dict[Verb, _Request]] = {
    "cancel": _Request(
        transitions.cancel,
        and_(
            Job.status.in_((Status.BLOCKED, Status.QUEUED, Status.RUNNING, Status.PAUSED)),
            Job.cancel_requested_at.is_(None),
        ),
    ),
    "pause": _Request(
        transitions.pause, and_(Job.status.in_((Status.QUEUED, Status.RUNNING)), Job.pause_requested_at.is_(None))
    ),
    "resume": _Request(transitions.resume, Job.status == Status.PAUSED),
    "archive": _Request(submission.archive, and_(Job.status.in_(TERMINAL), Job.archived_at.is_(None))),
    "unarchive": _Request(submission.unarchive, Job.archived_at.is_not(None)),
}


@dataclass(frozen=True)
class Refusal:
    """A requested job that does not change, and why; `is_foreign` says that it is of another key."""

    job_id: str
    name: str
    reason: str
    is_foreign: bool = False


@dataclass
class Changed:
    """The jobs that changed, and those that did not."""

    jobs: list[Job] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)

    def add(self, other: Changed) -> None:
        self.jobs += other.jobs
        self.refused += other.refused


def matching(session: Session, verb: Verb, filters: Filters, until: int | None = None) -> list[str]:
    """Return the ids of the newest `MOST` + 1 jobs that match, that the request changes, and that the key may change.

    Args:
        session: a transaction.
        verb: the request.
        filters: as of the list of jobs.
        until: milliseconds since 1970; only jobs that were submitted by then.
    """
    principal = access.principal_of(session)
    is_own = true() if principal is None or "admin" in principal.scopes else Job.created_by == principal.key_id
    newest = _possible(session, verb, filters, until, is_own).order_by(Job.id.desc()).limit(MOST + 1)
    return list(session.execute(newest).scalars())


def num_foreign(session: Session, verb: Verb, filters: Filters, until: int | None = None) -> int:
    """Return the number of jobs of other keys that match and that the request would change; arguments as `matching`."""
    principal = access.principal_of(session)
    if principal is None or "admin" in principal.scopes:
        return 0
    is_foreign = or_(Job.created_by.is_(None), Job.created_by != principal.key_id)
    matches = _possible(session, verb, filters, until, is_foreign).subquery()
    return session.execute(select(func.count()).select_from(matches)).scalar_one()


def _possible(
    session: Session, verb: Verb, filters: Filters, until: int | None, whose: ColumnElement[bool]
) -> Select[Any]:
    """Return the statement of the ids of the jobs that match, that the request changes, and that are of some keys."""
    statement: Select[Any] = select(Job.id).where(_REQUESTS[verb].is_possible, whose)
    if until is not None:
        statement = statement.where(Job.created_at <= until)
    return queries.matching(session, statement, filters)


def selected(session: Session, job_ids: Sequence[str], group_ids: Sequence[str]) -> list[str]:
    """Return the ids of the newest `MOST` + 1 jobs that are named, or are of a named seed group."""
    chosen = select(Job.id).where(or_(Job.id.in_(job_ids), Job.group_id.in_(group_ids)))
    return list(session.execute(chosen.order_by(Job.id.desc()).limit(MOST + 1)).scalars())


def change(session: Session, verb: Verb, job_ids: Sequence[str]) -> Changed:
    """Request the change of at most `AT_ONCE` jobs; those that refuse it are in the result."""
    result = Changed()
    for job_id in job_ids:
        try:
            _REQUESTS[verb].act(session, job_id)
        except (NotFound, Forbidden, Conflict) as error:
            job = session.get(Job, job_id)
            is_foreign = isinstance(error, Forbidden)
            result.refused.append(Refusal(job_id, job.name if job else "", error.detail, is_foreign))
        else:
            result.jobs.append(session.get_one(Job, job_id, populate_existing=True))
    return result


def listed(session: Session, verb: Verb, job_ids: Sequence[str]) -> Changed:
    """Return what `change` would, as far as the rows tell."""
    rows = {job.id: job for job in session.execute(select(Job).where(Job.id.in_(job_ids))).scalars()}
    possible = select(Job.id).where(Job.id.in_(job_ids), _REQUESTS[verb].is_possible)
    ids = set(session.execute(possible).scalars())
    result = Changed()
    for job_id in job_ids:
        if (job := rows.get(job_id)) is None:
            result.refused.append(Refusal(job_id, "", f"there is no job {job_id!r}"))
        elif not access.may_change(session, job.created_by):
            result.refused.append(Refusal(job_id, job.name, "it is of another key"))
        elif job_id not in ids:
            result.refused.append(Refusal(job_id, job.name, f"cannot {verb} a job that is {_state(verb, job)}"))
        else:
            result.jobs.append(job)
    return result


def _state(verb: Verb, job: Job) -> str:
    """Return why a request does not change a job: its status, or that it is archived or not."""
    if verb == "unarchive":
        return "not archived"
    return "archived already" if verb == "archive" and job.archived_at is not None else job.status
