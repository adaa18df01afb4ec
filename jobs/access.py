"""Who makes a request, and what it may change.

A key with `submit` changes its own jobs, sweeps, checkpoints and weights: those that it has submitted, and evaluations
that follow from them.  A key with `admin` changes those of all.  A priority above 0 needs the scope `priority` or
`admin`.  Workers and reconcilers act for no principal, and no rule stops them.

A key belongs to a project, or to all.  The things of other projects are absent for it (jobs.models.InProject), so its
scopes, `admin` included, are about its own project.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy.orm import Session

from jobs.database import DEFAULT_PROJECT, actor_of, project_of
from jobs.errors import Forbidden

WARNED_MS: Final = 7 * 86_400_000  # before a key expires, its user is warned


@dataclass(frozen=True)
class Principal:
    """The key behind a request, its scopes, and the browser session that the request belongs to.

    `expires_at` and `rotated_at` are those of the key when it was read, in milliseconds since 1970.  `project_id` is
    that of its project; None for a key of all projects.
    """

    key_id: str
    name: str
    scopes: frozenset[str]
    session: str = ""  # the hash of the browser session's secret, if the request carries one
    expires_at: int | None = None
    rotated_at: int | None = None
    project_id: str | None = None

    def ends_at(self, now: int) -> int | None:
        """Return when the key expires, if that is within a week of `now`; it is for a warning, and grants nothing."""
        return self.expires_at if self.expires_at is not None and self.expires_at - now < WARNED_MS else None

    def may_change(self, created_by: str | None) -> bool:
        """Return whether it may change what a key has created."""
        return "admin" in self.scopes or created_by == self.key_id

    def manages_service(self) -> bool:
        """Return whether it may change what all projects share: workers, datasets, projects."""
        return "admin" in self.scopes and self.project_id is None

    def may_prioritise(self) -> bool:
        """Return whether its jobs may have a priority above 0."""
        return not self.scopes.isdisjoint(("admin", "priority"))


def principal_of(session: Session) -> Principal | None:
    """Return the principal that the transaction acts for; None for a worker or a reconciler."""
    actor = actor_of(session)
    return actor if isinstance(actor, Principal) else None


def by(session: Session) -> dict[str, str]:
    """Return the part of an event's data that names the person or key that caused it; nothing if none did."""
    principal = principal_of(session)
    return {} if principal is None else {"by": principal.name}


def may_change(session: Session, created_by: str | None) -> bool:
    """Return whether the transaction may change what a key has created; None for a key that no row names."""
    principal = principal_of(session)
    return principal is None or principal.may_change(created_by)


def check_owner(session: Session, created_by: str | None, name: str) -> None:
    """Check that the transaction may change an object.

    Raises:
        Forbidden: it is of another key, and the transaction acts for none with `admin`.
    """
    if not may_change(session, created_by):
        raise Forbidden(f"{name} is of another key; only that key or one with `admin` may change it")


def check_owner_of_shared(session: Session, created_by: str | None, name: str) -> None:
    """Check that the transaction may change an object that all projects share.

    Raises:
        Forbidden: it is of another key, and the transaction acts for none with `admin` in all projects.
    """
    principal = principal_of(session)
    if principal is not None and created_by != principal.key_id and not principal.manages_service():
        raise Forbidden(f"{name} is of another key; only that key or one with `admin` for all projects may change it")


def new_project(session: Session) -> str:
    """Return the project of a new object that follows from no other one: that of the transaction, else the default."""
    return project_of(session) or DEFAULT_PROJECT


def may_prioritise(session: Session) -> bool:
    """Return whether jobs of the transaction may have a priority above 0."""
    principal = principal_of(session)
    return principal is None or principal.may_prioritise()


def copied_priority(session: Session, priority: int) -> int:
    """Return the priority of a copy of a job, such as a retry: at most 0 for a key that may not set a higher one."""
    return priority if may_prioritise(session) else min(priority, 0)
