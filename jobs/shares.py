"""Links that show a run or a comparison without a key, read-only, until they expire or are revoked.

A link's secret has 256 random bits, is shown once, and is stored as a hash.  A link ends with the key that created it.
A deleted job is absent from its links.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, and_, or_, select, true, update
from sqlalchemy.orm import Session

from jobs import activity
from jobs.comparisons import comparison
from jobs.database import database_time, new_id, now_ms, within
from jobs.errors import FieldError, Forbidden, Invalid, NotFound
from jobs.events import record
from jobs.keys import Principal, is_active
from jobs.models import Job, Key, Share, ShareJob

DAYS, MAX_DAYS = 7, 90
_DAY_MS: Final = 86_400_000
_PREFIX: Final = "wcs_"


@dataclass(frozen=True)
class Link:
    """A link with the ids and names of its jobs that are not deleted; `is_open` says whether it works."""

    share: Share
    jobs: list[tuple[str, str]]
    is_open: bool


def check_allowed(is_allowed: bool) -> None:
    """Check that the server allows links (`WCL_SHARED_LINKS`).

    Raises:
        Forbidden: it does not.
    """
    if not is_allowed:
        raise Forbidden("links without a key are switched off on this server (WCL_SHARED_LINKS)")


def create(
    session: Session, job_ids: Sequence[str], days: int, by: Principal, form_key: str | None = None
) -> tuple[Share, str] | None:
    """Create a link to a job, or to the comparison of several.

    Args:
        session: a writing transaction.
        job_ids: of the jobs, in the order of the comparison.
        days: the time until the link expires.
        by: whose link it is.
        form_key: of the form that was sent; the second time it creates nothing.

    Returns:
        (its row, the secret, which is not stored); None for a form that was sent before.

    Raises:
        NotFound: there is no such job.
        Invalid: there is no job, or these are too many for a comparison, or of several projects; or the number of days
            is out of range.
    """
    job_ids = list(dict.fromkeys(job_ids))
    if not job_ids:
        raise Invalid([FieldError("/jobs", "expected the id of at least one job")])
    if not 1 <= days <= MAX_DAYS:
        raise Invalid([FieldError("/days", f"expected 1 to {MAX_DAYS} days, not {days}")])
    if form_key and session.execute(select(Share.id).where(Share.form_key == form_key)).first() is not None:
        return None
    comparison(session, job_ids)  # what the link shows
    project_ids = set(session.execute(select(Job.project_id).where(Job.id.in_(job_ids))).scalars())
    if len(project_ids) > 1:
        raise Invalid([FieldError("/jobs", "expected jobs of one project; create a link for each")])
    secret = _PREFIX + secrets.token_urlsafe(32)
    share = Share(
        id=new_id(),
        project_id=project_ids.pop(),
        hash=_hash(secret),
        form_key=form_key or None,
        created_by=by.key_id,
        created_by_name=by.name,
        expires_at=database_time(session) + days * _DAY_MS,
    )
    session.add(share)
    session.flush()
    session.add_all(ShareJob(share_id=share.id, job_id=job_id, place=at) for at, job_id in enumerate(job_ids))
    for job_id in sorted(job_ids):
        record(session, job_id, "shared", {"link": share.id, "days": days, "by": by.name})
    session.refresh(share)
    activity.note(session, "share.create", share.id, by=by, jobs=list(job_ids), days=days)
    return share, secret


@dataclass(frozen=True)
class Visitor:
    """The reader of a link, who has no key: a transaction for one sees the link's project only (`acting_for`)."""

    project_id: str


def find(session: Session, secret: str) -> tuple[Visitor, list[str]] | None:
    """Return the visitor of a link and the ids of its jobs; None for a link that does not work or shows no job."""
    is_open = (Share.revoked_at.is_(None), Share.expires_at > now_ms(), *_has_key())
    owned = select(Share.id).join(Key, Key.id == Share.created_by).where(Share.hash == _hash(secret), *is_open)
    shown = select(Job.id, Job.project_id).join(ShareJob, ShareJob.job_id == Job.id)
    rows = session.execute(shown.where(ShareJob.share_id.in_(owned)).order_by(ShareJob.place)).all()
    return (Visitor(rows[0].project_id), [row.id for row in rows]) if rows else None


def _has_key() -> tuple[ColumnElement[bool], ...]:
    """Return the conditions of links whose key grants access, and still to the project of the link."""
    return *is_active(), or_(Key.project_id.is_(None), Key.project_id == Share.project_id)


def links(session: Session, by: Principal) -> list[Link]:
    """Return the newest 1,000 links that a key manages: its own ones, and for an administrator all."""
    has_key = and_(*_has_key()).label("has_key")
    statement = select(Share, has_key).join(Key, Key.id == Share.created_by).where(_is_managed(by))
    is_seen = true() if by.project_id is None else Share.project_id == by.project_id
    with within(session, None):  # a key of all projects may have created one
        rows = session.execute(statement.where(is_seen).order_by(Share.id.desc()).limit(1_000)).all()
    named = select(ShareJob.share_id, Job.id, Job.name).join(Job, Job.id == ShareJob.job_id).order_by(ShareJob.place)
    jobs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for share_id, job_id, name in session.execute(named.where(ShareJob.share_id.in_([row.Share.id for row in rows]))):
        jobs[share_id].append((job_id, name))
    now = database_time(session)
    return [
        Link(share, jobs[share.id], share.revoked_at is None and bool(key) and share.expires_at > now)
        for share, key in rows
    ]


def revoke(session: Session, share_id: str, by: Principal) -> None:
    """Revoke a link at once; a second call changes nothing.

    Raises:
        NotFound: there is no such link, or it is another key's.
    """
    managed = select(Share.id).where(Share.id == share_id, _is_managed(by))
    if session.execute(managed).first() is None:
        raise NotFound(f"there is no link {share_id!r}")
    is_first = update(Share).where(Share.id == share_id, Share.revoked_at.is_(None))
    changed = session.execute(is_first.values(revoked_at=now_ms(), revoked_by_name=by.name).returning(Share.id))
    if changed.first() is None:
        return
    shown = select(Job.id).join(ShareJob, ShareJob.job_id == Job.id).where(ShareJob.share_id == share_id)
    for job_id in session.execute(shown.order_by(Job.id)).scalars().all():
        record(session, job_id, "unshared", {"link": share_id, "by": by.name})
    activity.note(session, "share.revoke", share_id, by=by)


def _is_managed(by: Principal) -> ColumnElement[bool]:
    return true() if "admin" in by.scopes else Share.created_by == by.key_id


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
