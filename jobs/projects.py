"""Projects: groups of keys with what they submit.  Another project's things are absent (jobs.models.InProject).

A key belongs to one project, or to all of them.  Workers, datasets and imported weights are shared by all projects.
A project may have limits (jobs.limits).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import activity
from jobs.database import DEFAULT_PROJECT, new_id, project_of
from jobs.errors import Conflict, FieldError, Forbidden, Invalid, NotFound, existing
from jobs.models import Project

ALL: Final = "*"  # stands for all projects where a project is named
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MOST: Final = 1_000
MAX_BYTES: Final = 1 << 60
LIMITS: Final = {"max_waiting": 1_000_000, "max_gpus": 1_000_000, "max_bytes": MAX_BYTES}  # columns, the largest values


def every(session: Session) -> list[Project]:
    """Return the projects that the transaction sees, by name."""
    return list(session.execute(select(Project).order_by(Project.name)).scalars())


def named(session: Session, name: str) -> Project:
    """Return the project of a name.

    Raises:
        NotFound: there is none.
    """
    row = session.execute(select(Project).where(Project.name == name)).scalar_one_or_none()
    if row is None:
        raise NotFound(f"there is no project {name[:100]}")
    return row


def create(session: Session, name: str) -> Project:
    """Create a project, without limits.

    Raises:
        Invalid: the name cannot be one.
        Conflict: there is one of this name, or there are too many.
    """
    if len(_check_name(session, name)) >= _MOST:
        raise Conflict(f"there are {_MOST:,} projects, the most of a service")
    row = Project(id=new_id(), name=name)
    session.add(row)
    session.flush()
    activity.note(session, "project.create", row.id, name)
    return row


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
    row = existing(session.get(Project, project_id, with_for_update=True), f"project {project_id[:100]}")
    if name is not None and name != row.name:
        _check_name(session, name)
        activity.note(session, "project.rename", row.id, name, former=row.name)
        row.name = name
    changed = {each: limit for each, limit in (limits or {}).items() if limit != getattr(row, each)}
    for each, limit in changed.items():
        if limit is not None and not 1 <= limit <= LIMITS[each]:
            raise Invalid([FieldError(f"/{each}", f"expected 1 to {LIMITS[each]:,}, not {limit}")])
        setattr(row, each, limit)
    if changed:
        activity.note(session, "project.change", row.id, row.name, limits=changed)
    session.flush()
    return row


def _check_name(session: Session, name: str) -> list[str]:
    """Check the name of a project, and return those of all projects."""
    if _NAME.fullmatch(name) is None:
        expected = "expected 1 to 64 characters of a-z, 0-9, `.`, `_` and `-`, a letter or digit first"
        raise Invalid([FieldError("/name", expected)])
    names = [row.name for row in every(session)]
    if name in names:
        raise Conflict(f"there is a project {name} already")
    return names


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
    """Return the names of the projects that the transaction sees, by id."""
    return {row.id: row.name for row in every(session)}
