"""Saved views of the list of jobs: a name for filters, group and order, for one key or shared with all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qsl, urlencode

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from jobs import access, activity
from jobs.access import Principal
from jobs.database import new_id
from jobs.errors import FieldError, Invalid, NotFound
from jobs.models import SavedView
from wcl_core.text import visible

MAX_VIEWS, MAX_NAME, MAX_QUERY = 100, 100, 1_000
FIELDS: Final = ("status", "kind", "tag", "q", "archived", "starred", "group", "sort", "order")


def save(session: Session, by: Principal, name: str, query: str, *, is_shared: bool) -> SavedView:
    """Save a view under a name; a view of this key with the same name is replaced.

    Args:
        session: a writing transaction.
        by: whose view it is.
        name: 1 to 100 characters.
        query: of the address of the list, such as `status=running&group=method`.
        is_shared: whether other keys see it, too.

    Raises:
        Invalid: the name or the query cannot be one, or the key has 100 views.
    """
    name = name.strip()
    if not 0 < len(name) <= MAX_NAME or visible(name) != name:
        raise Invalid([FieldError("/name", f"expected 1 to {MAX_NAME} characters, without control characters")])
    query = _checked(query)
    own = {view.name: view for view in session.execute(_of(by.key_id)).scalars()}
    row = own.get(name)
    if row is None and len(own) >= MAX_VIEWS:
        raise Invalid([FieldError("/name", f"this key has {MAX_VIEWS} views; remove one first")])
    if row is None:
        row = SavedView(id=new_id(), created_by=by.key_id, created_by_name=by.name, name=name)
        row.project_id = access.new_project(session)
        session.add(row)
    row.query, row.is_shared = query, is_shared
    session.flush()
    session.refresh(row)
    activity.note(session, "view.save", row.id, name, by=by, query=query, shared=is_shared)
    return row


def listed(session: Session, by: Principal) -> Sequence[SavedView]:
    """Return the views of a key and those that others share, by name."""
    seen = or_(SavedView.created_by == by.key_id, SavedView.is_shared)
    return (
        session.execute(select(SavedView).where(seen).order_by(SavedView.name, SavedView.id).limit(500)).scalars().all()
    )


def remove(session: Session, by: Principal, view_id: str) -> None:
    """Remove a view.

    Raises:
        NotFound: there is no such view, or it is another key's and not shared.
        Forbidden: it is another key's, and this one has no `admin`.
    """
    row = session.get(SavedView, view_id)
    if row is None or not (row.is_shared or by.may_change(row.created_by)):
        raise NotFound(f"there is no view {view_id!r}")
    access.check_owner(session, row.created_by, f"view {row.name}")
    session.delete(row)
    activity.note(session, "view.remove", row.id, row.name, by=by)


def _of(key_id: str) -> Select[SavedView]:
    return select(SavedView).where(SavedView.created_by == key_id)


def _checked(query: str) -> str:
    if len(query) > MAX_QUERY:
        raise Invalid([FieldError("/query", f"expected at most {MAX_QUERY} characters")])
    pairs = parse_qsl(query.removeprefix("/").removeprefix("?"))
    if unknown := sorted({name for name, _ in pairs} - set(FIELDS)):
        raise Invalid([FieldError("/query", f"no field {unknown[0]!r}; expected some of {', '.join(FIELDS)}")])
    return urlencode(pairs)
