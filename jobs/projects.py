"""Projects: groups of keys with what they submit.  Another project's things are absent (jobs.models.InProject).

A key belongs to one project, or to all of them.  Workers, datasets and imported weights are shared by all projects.
A project may have limits (jobs.limits).  A removed one has no keys and no jobs; its row stays for usage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs import activity
from jobs.database import DEFAULT_PROJECT, new_id, now_ms, project_of
from jobs.errors import Conflict, FieldError, Forbidden, Invalid, NotFound, existing
from jobs.models import SEES_HIDDEN, Job, Key, Project, Sweep
from jobs.status import Status
from wcl_core.text import counted

ALL: Final = "*"  # stands for all projects where a project is named
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MOST: Final = 1_000
_MOST_NAMED: Final = 5
_BACK: Final = "; `wcl projects create` brings it back"
MAX_BYTES: Final = 1 << 60
LIMITS: Final = {"max_waiting": 1_000_000, "max_gpus": 1_000_000, "max_bytes": MAX_BYTES}  # columns, the largest values


def every(session: Session) -> list[Project]:
    """Return the projects that the transaction sees, by name, without those that are removed."""
    return list(session.execute(select(Project).where(Project.removed_at.is_(None)).order_by(Project.name)).scalars())


def named(session: Session, name: str) -> Project:
    """Return the project of a name; until the transaction ends, it is not removed.

    Raises:
        NotFound: there is none.
    """
    statement = select(Project).where(Project.name == name).with_for_update(read=True)
    row = session.execute(statement).scalar_one_or_none()
    if row is None or row.removed_at is not None:
        raise NotFound(f"there is no project {name[:100]}")
    return row


def create(session: Session, name: str) -> Project:
    """Create a project, without limits; the name of a removed one brings it back, with the usage of its time.

    Raises:
        Invalid: the name cannot be one.
        Conflict: there is one of this name, or there are too many.
    """
    _check_form(name)
    if len(every(session)) >= _MOST:
        raise Conflict(f"there are {_MOST:,} projects, the most of a service")
    row = _of_name(session, name)
    if row is None:
        row = Project(id=new_id(), name=name)
        session.add(row)
    elif row.removed_at is None:
        raise Conflict(f"there is a project {name} already")
    else:
        row.removed_at = None
        for limit in LIMITS:
            setattr(row, limit, None)
    session.flush()
    activity.note(session, "project.create", row.id, name)
    return row


def remove(session: Session, project_id: str) -> None:
    """Remove a project that has no keys and no jobs.

    Raises:
        NotFound: there is no such project.
        Conflict: it has keys that are not revoked, jobs (deleted ones, too, until their files are removed) or sweeps
            that go on; or it is the default one.
    """
    row = _present(session, project_id)
    if row.id == DEFAULT_PROJECT:
        raise Conflict(f"the project {row.name} is that of keys without another one, and cannot be removed; rename it")
    if content := _content(session, row.id):
        raise Conflict(f"the project {row.name} has {' and '.join(content)}")
    row.removed_at = now_ms()
    session.flush()
    activity.note(session, "project.remove", row.id, row.name)


def _content(session: Session, project_id: str) -> list[str]:
    """Return what keeps a project from its removal, with the way to end that."""
    num_keys = session.execute(
        select(func.count()).where(Key.project_id == project_id, Key.revoked_at.is_(None))
    ).scalar_one()
    of_project = select(func.count(), func.count(Job.hidden_at)).where(Job.project_id == project_id)
    num_jobs, num_deleted = session.execute(of_project, execution_options=SEES_HIDDEN).one()
    owners = select(Key.name).join(Job, Job.created_by == Key.id).where(Job.project_id == project_id)
    names = session.execute(owners.distinct().order_by(Key.name), execution_options=SEES_HIDDEN).scalars().all()
    of = f", submitted by {', '.join(names[:_MOST_NAMED])}{', …' * (len(names) > _MOST_NAMED)}" if names else ""
    running = select(func.count()).where(Sweep.project_id == project_id, Sweep.status == Status.RUNNING)
    num_sweeps = session.execute(running).scalar_one()
    parts = (
        (num_keys, "key", "move or revoke: `wcl keys change NAME --project OTHER`, `wcl keys revoke NAME`"),
        (num_jobs - num_deleted, "job", f"`wcl delete`{of}"),
        (num_deleted, "deleted job", f"`wcl purge` removes them now{of}"),
        (num_sweeps, "unfinished sweep", "`wcl sweep cancel`"),
    )
    return [f"{counted(number, noun)} ({way})" for number, noun, way in parts if number]


def _present(session: Session, project_id: str) -> Project:
    """Return a project, locked; a removed one counts as absent."""
    row = session.get(Project, project_id, with_for_update=True)
    return existing(row if row is not None and row.removed_at is None else None, "project", project_id[:100])


def _of_name(session: Session, name: str) -> Project | None:
    return session.execute(select(Project).where(Project.name == name)).scalar_one_or_none()


def change(
    session: Session, project_id: str, name: str | None = None, limits: Mapping[str, int | None] | None = None
) -> Project:
    """Rename a project, or change its limits (jobs.limits); its keys and their things stay in it.

    Args:
        session: a writing transaction.
        project_id: of the project.
        name: the new one; None leaves it as it is.
        limits: some of `LIMITS`; None for none.

    Raises:
        NotFound: there is no such project.
        Invalid: the name cannot be one, or a limit is out of range.
        Conflict: another project has this name.
    """
    row = _present(session, project_id)
    if name is not None and name != row.name:
        _check_form(name)
        if (other := _of_name(session, name)) is not None:
            is_gone = other.removed_at is not None
            raise Conflict(f"there {'was' if is_gone else 'is'} a project {name} already{_BACK * is_gone}")
        activity.note(session, "project.rename", row.id, name, former=row.name)
        row.name = name
    changed = {each: limit for each, limit in (limits or {}).items() if limit != getattr(row, each)}
    former = {each: getattr(row, each) for each in changed}
    for each, limit in changed.items():
        if limit is not None and not 1 <= limit <= LIMITS[each]:
            raise Invalid([FieldError(f"/{each}", f"expected 1 to {LIMITS[each]:,}, not {limit}")])
        setattr(row, each, limit)
    if changed:
        activity.note(session, "project.change", row.id, row.name, limits=changed, former={"limits": former})
    session.flush()
    return row


def _check_form(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        expected = "expected 1 to 64 characters of a-z, 0-9, `.`, `_` and `-`, a letter or digit first"
        raise Invalid([FieldError("/name", expected)])


def of_new_key(session: Session, name: str | None, scopes: Sequence[str]) -> str | None:
    """Return the id of the project of a new key, or of one that is moved; None for all projects.

    Args:
        session: a writing transaction.
        name: of the project, or `ALL`; None for the project of the transaction, and where there is none for all
            projects if the scopes have `admin`, else the default one.
        scopes: of the key.

    Raises:
        NotFound: there is no such project.
        Forbidden: only a key of all projects gives others access to all.
    """
    if name == ALL:
        if project_of(session) is not None:
            raise Forbidden("only a key of all projects may give access to all of them")
        return None
    if name is not None:
        return named(session, name).id
    own = project_of(session)
    return own or (None if "admin" in scopes else DEFAULT_PROJECT)


def by_id(session: Session) -> dict[str, str]:
    """Return the names of the projects that the transaction sees, by id, with those that are removed."""
    return {row.id: row.name for row in session.execute(select(Project.id, Project.name))}
