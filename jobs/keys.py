"""Access: API keys, one-time sign-in links and browser sessions.  Only hashes of secrets are stored.

A key is shown once.  A sign-in link carries a token that works once, within 15 minutes, and becomes a browser session,
as does a key that a user enters.  The session has the key's scopes and ends with the key.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from sqlalchemy import ColumnElement, delete, or_, select, update
from sqlalchemy.orm import Session

from jobs import activity
from jobs.access import Principal as Principal
from jobs.database import Database, new_id, now_ms
from jobs.errors import FieldError, Invalid, existing
from jobs.models import Key, SignInToken
from wcl_core.files import write_bytes
from wcl_core.text import visible

SCOPES = ("read", "submit", "priority", "admin")
LINK_MINUTES = 15
SESSION_DAYS = 30
_PREFIX = "wcl_"


def create(session: Session, name: str, scopes: Sequence[str]) -> tuple[Key, str]:
    """Create a key of 256 random bits.

    Returns:
        (its row, the secret, which is not stored).

    Raises:
        Invalid: a scope is unknown, or there is none; or the name cannot be one.
    """
    if not 0 < len(name) <= 200 or visible(name) != name:
        raise Invalid([FieldError("/name", "expected 1 to 200 characters, without control characters")])
    if not scopes or not set(scopes) <= set(SCOPES):
        raise Invalid([FieldError("/scopes", f"expected some of {', '.join(SCOPES)}")])
    secret = _PREFIX + secrets.token_urlsafe(32)
    key = Key(id=new_id(), name=name, hash=_hash(secret), scopes=sorted(set(scopes), key=SCOPES.index))
    session.add(key)
    session.flush()
    session.refresh(key)
    activity.note(session, "key.create", key.id, name, scopes=key.scopes)
    return key, secret


def list_keys(session: Session) -> list[Key]:
    """Return the newest 1000 keys, newest first, revoked ones included."""
    return list(session.execute(select(Key).order_by(Key.id.desc()).limit(1000)).scalars())


def find(session: Session, secret: str) -> Principal | None:
    """Return the key of a secret; None if it is unknown or revoked."""
    # The database compares hashes, so the timing reveals nothing about the secret.
    return _principal(session, Key.hash == _hash(secret))


def revoke(session: Session, key_id: str) -> None:
    """Revoke a key and its browser sessions at once; a second call changes nothing.

    Raises:
        NotFound: there is no such key.
    """
    key = existing(session.get(Key, key_id), f"key {key_id}")
    if key.revoked_at is not None:
        return
    session.execute(update(Key).where(Key.id == key_id).values(revoked_at=now_ms()))
    session.execute(delete(SignInToken).where(SignInToken.key_id == key_id))
    activity.note(session, "key.revoke", key_id, key.name)


def note_use(session: Session, key_id: str) -> None:
    """Record that the key was used now, at most once a minute over all servers."""
    is_old = or_(Key.last_used_at.is_(None), Key.last_used_at <= now_ms() - 60_000)
    session.execute(update(Key).where(Key.id == key_id, is_old).values(last_used_at=now_ms()))


def has_keys(session: Session) -> bool:
    """Return whether there is a key that is not revoked."""
    return session.execute(select(Key.id).where(Key.revoked_at.is_(None)).limit(1)).first() is not None


def ended(session: Session, principals: Collection[Principal]) -> set[Principal]:
    """Return those whose key is revoked, or whose browser session is over."""
    ids, hashes = {each.key_id for each in principals}, {each.session for each in principals if each.session}
    keys = set(session.execute(select(Key.id).where(Key.id.in_(ids), Key.revoked_at.is_(None))).scalars())
    open_sessions = select(SignInToken.hash).where(SignInToken.hash.in_(hashes), SignInToken.expires_at > now_ms())
    sessions = set(session.execute(open_sessions).scalars()) if hashes else set()
    return {each for each in principals if each.key_id not in keys or (each.session and each.session not in sessions)}


def new_link(session: Session, key_id: str) -> str:
    """Create a sign-in link and return its token, which works once within 15 minutes."""
    token = _new_token(session, "link", key_id, LINK_MINUTES * 60_000)
    activity.note(session, "key.link", key_id, session.get_one(Key, key_id).name)
    return token


def is_link(session: Session, token: str) -> bool:
    """Return whether the token is of a link that still works."""
    return session.execute(select(SignInToken.hash).where(*_is_token("link", token))).first() is not None


def redeem(session: Session, token: str) -> str | None:
    """Exchange a link's token for a browser session; return None if the token is unknown, used or expired."""
    statement = delete(SignInToken).where(*_is_token("link", token)).returning(SignInToken.key_id)
    key_id = session.execute(statement).scalar_one_or_none()
    return None if key_id is None else _new_session(session, key_id, "link")


def sign_in(session: Session, secret: str) -> str | None:
    """Exchange the secret of a key for a browser session; return None if the key is unknown or revoked."""
    principal = find(session, secret)
    return None if principal is None else _new_session(session, principal.key_id, "key")


def by_session(session: Session, token: str) -> Principal | None:
    """Return the key of a browser session; None if the session is unknown or expired, or the key revoked."""
    owner = select(SignInToken.key_id).where(*_is_token("session", token))
    principal = _principal(session, Key.id.in_(owner))
    return None if principal is None else replace(principal, session=_hash(token))


def end_session(session: Session, token: str) -> None:
    """End a browser session; a second call changes nothing."""
    ended = delete(SignInToken).where(SignInToken.hash == _hash(token)).returning(SignInToken.key_id)
    if (key_id := session.execute(ended).scalar_one_or_none()) is not None:
        activity.note(session, "session.end", key_id, session.get_one(Key, key_id).name)


def expire(session: Session) -> None:
    """Delete expired links and sessions."""
    session.execute(delete(SignInToken).where(SignInToken.expires_at <= now_ms()))


def ensure_local(database: Database, path: Path) -> str:
    """Return the secret of this machine's own key, and create the key if there is none.

    The secret is kept in a file that only its owner can read.
    """
    stored = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    if stored:
        with database.read() as session:
            if find(session, stored):
                return stored
    own = database.acting_for(activity.SERVER)
    secret = own.write(lambda session: create(session, "local", ("read", "submit", "admin"))[1])
    write_bytes(path, f"{secret}\n".encode(), mode=0o600)
    return secret


def _new_session(session: Session, key_id: str, way: str) -> str:
    """Begin a browser session of a key; `way` is what it was exchanged for."""
    key = session.get_one(Key, key_id)
    principal = Principal(key.id, key.name, frozenset(key.scopes))
    activity.note(session, "session.begin", key.id, key.name, by=principal, way=way)
    return _new_token(session, "session", key_id, SESSION_DAYS * 86_400_000)


def _new_token(session: Session, kind: str, key_id: str, lifetime_ms: int) -> str:
    token = secrets.token_urlsafe(32)
    session.add(SignInToken(hash=_hash(token), kind=kind, key_id=key_id, expires_at=now_ms() + lifetime_ms))
    session.flush()
    return token


def _is_token(kind: str, token: str) -> tuple[ColumnElement[bool], ...]:
    return SignInToken.hash == _hash(token), SignInToken.kind == kind, SignInToken.expires_at > now_ms()


def _principal(session: Session, *where: ColumnElement[bool]) -> Principal | None:
    key = session.execute(select(Key).where(*where, Key.revoked_at.is_(None))).scalar_one_or_none()
    return None if key is None else Principal(key.id, key.name, frozenset(key.scopes))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
