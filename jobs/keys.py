"""Access: API keys, one-time sign-in links and browser sessions.  Only hashes of secrets are stored.

A person whom a trusted proxy has signed in has a row, too: it owns what the person submits, and its revocation ends the
person's access.  It has no secret until a rotation gives it one.

A key is shown once, and ends when it is revoked or expires; `is_active` is the one definition.  A rotation gives it a
new secret: jobs, webhooks and shared links stay those of the key.  A sign-in link carries a token that works once,
within 15 minutes, and becomes a browser session, as does a key that a user enters.  The session has the key's scopes
and ends with the key.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, get_args

from sqlalchemy import ColumnElement, Select, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jobs import activity, projects
from jobs.access import Principal as Principal
from jobs.database import DEFAULT_PROJECT, Database, database_time, new_id, now_ms, project_of, within
from jobs.errors import Conflict, FieldError, Forbidden, Invalid, NotFound, existing
from jobs.models import Key, SignInToken
from jobs.settings import ScopeName
from wcl_core.files import write_bytes
from wcl_core.text import visible

SCOPES: Final = get_args(ScopeName)
MEMBER: Final = ("read", "submit")  # the scopes of a new key, if none are named
ADMINISTRATOR: Final = ("read", "submit", "admin")
MAX_DAYS = 3_650
LIMITS: Final = ("max_waiting", "max_devices", "max_submissions")  # columns of a key
MAX_LIMIT: Final = 1_000_000
Days = int | Literal["keep"] | None  # None: the key does not expire
_DAY_MS: Final = 86_400_000
LINK_MINUTES = 15
INVITATION_MINUTES = 60
_INVITATION = 12  # characters of the hash of its token, which name an invitation
SESSION_DAYS = 30
PREFIX = "wcl_"


def is_active() -> tuple[ColumnElement[bool], ...]:
    """Return the conditions of keys that grant access: neither revoked nor expired."""
    return Key.revoked_at.is_(None), or_(Key.expires_at.is_(None), Key.expires_at > now_ms())


def grants_access(key: Key, now: int) -> bool:
    """Return what `is_active` does, for a row and the database's time."""
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > now)


def create(
    session: Session,
    name: str,
    scopes: Sequence[str] = MEMBER,
    days: int | None = None,
    form_key: str | None = None,
    limits: Mapping[str, int | None] | None = None,
    project: str | None = None,
) -> tuple[Key, str]:
    """Create a key of 256 random bits.

    Args:
        session: a writing transaction.
        name: of the person or program that uses it.
        scopes: of `SCOPES`.
        days: until it expires; None for a key that does not expire.
        form_key: of the form that creates it (`was_sent`).
        limits: as of `change`.
        project: its name, or `projects.ALL`; None for that of the transaction, and where there is none for all if the
            scopes have `admin`, else the default one.

    Returns:
        (its row, the secret, which is not stored).

    Raises:
        Invalid: a scope is unknown, or there is none; or name, days or limits cannot be one.
        NotFound: there is no such project.
    """
    secret = _new_secret()
    key = Key(
        id=new_id(),
        name=_checked_name(name),
        hash=_hash(secret),
        scopes=_checked_scopes(scopes),
        expires_at=_expiry(session, days),
        form_key=form_key or None,
        project_id=projects.of_new_key(session, project, scopes),
    )
    _set_limits(key, limits or {})
    session.add(key)
    session.flush()
    session.refresh(key)
    set_limits = {each: limit for each, limit in (limits or {}).items() if limit is not None}
    facts: dict[str, Any] = {"scopes": key.scopes, "expires": _day(key.expires_at), "limits": set_limits or None}
    facts["project"] = project
    activity.note(session, "key.create", key.id, name, **facts)
    return key, secret


def was_sent(session: Session, form_key: str) -> bool:
    """Return whether a form has created a key before."""
    return session.execute(select(Key.id).where(Key.form_key == form_key)).first() is not None


def change(
    session: Session,
    key_id: str,
    limits: Mapping[str, int | None],
    project: str | None = None,
    *,
    name: str | None = None,
    scopes: Sequence[str] | None = None,
    days: Days = "keep",
) -> Key:
    """Change a key: its name, scopes, expiry, limits (jobs.limits) or project; its jobs stay where they are.

    Its secret stays.  All changes hold at once, also for browser sessions.

    Args:
        session: a writing transaction.
        key_id: of the key.
        limits: of `LIMITS`, by name; None for that of the service.
        project: its name, or `projects.ALL`; None leaves the key where it is.
        name, scopes: as of `create`; None leaves them as they are.
        days: until it expires; `keep` leaves that time as it is.

    Raises:
        NotFound: there is no such key, or no such project.
        Forbidden: the transaction may not give access to all projects.
        Conflict: it is revoked, or its scopes and name are those of a person of a proxy, or the last active key with
            `admin` in all projects would lose this.
        Invalid: a value cannot be one.
    """
    key = existing(session.get(Key, key_id, with_for_update=True), "key", key_id)
    if key.revoked_at is not None:
        raise Conflict(f"the key {key.name} is revoked; create another one")
    if key.proxy_user is not None and (name is not None or scopes is not None):
        raise Conflict(
            f"the proxy gives {key.name} name and scopes; change the groups there, or WCL_PROXY_GROUP_SCOPES"
        )
    former: dict[str, Any] = {"limits": {each: getattr(key, each) for each in limits}} if limits else {}
    _set_limits(key, limits)
    project_id = key.project_id
    if project is not None:
        project_id = projects.of_new_key(session, project, key.scopes if scopes is None else scopes)
    kept = key.scopes if scopes is None else _checked_scopes(scopes)
    if ("admin" not in kept or project_id is not None) and _is_last_administrator(session, key_id):
        raise Conflict(f"{key.name} is the last key with `admin` for all projects; create another one first")
    facts: dict[str, Any] = {"limits": dict(limits) or None, "project": project}
    if name is not None and name != key.name:
        facts["renamed_to"] = name
    if kept != key.scopes:
        facts["scopes"], former["scopes"] = kept, key.scopes
    if days != "keep":
        facts["expires"] = "never" if days is None else _day(_expiry(session, days))
        former["expires"] = "never" if key.expires_at is None else _day(key.expires_at)
    activity.note(session, "key.change", key_id, key.name, **facts, former=former or None)
    key.name, key.scopes, key.project_id = _checked_name(key.name if name is None else name), kept, project_id
    if days != "keep":
        key.expires_at = _expiry(session, days)
    session.flush()
    return key


def _is_last_administrator(session: Session, key_id: str) -> bool:
    return [each.id for each in _administrators(session, is_locking=True)] == [key_id]


def _checked_name(name: str) -> str:
    if not 0 < len(name) <= 200 or visible(name) != name:
        raise Invalid([FieldError("/name", "expected 1 to 200 characters, without control characters")])
    return name


def _checked_scopes(scopes: Collection[str]) -> list[str]:
    if not scopes or not set(scopes) <= set(SCOPES):
        raise Invalid([FieldError("/scopes", f"expected some of {', '.join(SCOPES)}")])
    return sorted(set(scopes), key=SCOPES.index)


def namesakes(session: Session, key: Key) -> str | None:
    """Return a warning if other active keys have the name of a key; None otherwise."""
    others = select(Key.id).where(Key.name == key.name, Key.id != key.id, *is_active())
    if (count := len(session.execute(others).all())) == 0:
        return None
    have = "another key has" if count == 1 else f"{count} other keys have"
    return f"{have} the name {key.name}, too; commands that name it need the id, {key.id} for this one"


def _set_limits(key: Key, limits: Mapping[str, int | None]) -> None:
    assert set(limits) <= set(LIMITS)
    for name, limit in limits.items():
        if limit is not None and not 1 <= limit <= MAX_LIMIT:
            raise Invalid([FieldError(f"/{name}", f"expected 1 to {MAX_LIMIT:,}, not {limit}")])
        setattr(key, name, limit)


def rotate(
    session: Session, key_id: str, days: Days = "keep", seen: int | Literal["any"] | None = "any"
) -> tuple[Key, str, str]:
    """Give a key a new secret; the former one, its browser sessions and its sign-in links end at once.

    Args:
        session: a writing transaction.
        key_id: of the key.
        days: until it expires; `keep` leaves that time as it is.
        seen: `rotated_at` of the key as the user has seen it, so that a form that is sent again changes nothing.

    Returns:
        (its row, the secret, which is not stored, the hash of the former secret).

    Raises:
        NotFound: there is no such key.
        Conflict: it is revoked, or was rotated since it was seen.
        Invalid: it has expired, and there is no new time; or days are out of range.
    """
    key = existing(session.get(Key, key_id, with_for_update=True), "key", key_id)
    if key.revoked_at is not None:
        raise Conflict(f"the key {key.name} is revoked; create another one")
    if seen not in ("any", key.rotated_at):
        raise Conflict(f"the key {key.name} has been rotated since this page was loaded")
    now = database_time(session)
    if days != "keep":
        key.expires_at = _expiry(session, days)
    elif key.expires_at is not None and key.expires_at <= now:
        raise Invalid([FieldError("/days", f"the key expired on {_day(key.expires_at)}; expected days from now")])
    secret, former_hash = _new_secret(), key.hash
    key.hash, key.rotated_at = _hash(secret), max(now, (key.rotated_at or 0) + 1)
    session.flush()
    session.execute(delete(SignInToken).where(SignInToken.key_id == key_id))
    activity.note(session, "key.rotate", key_id, key.name, expires=_day(key.expires_at))
    return key, secret, former_hash


def list_keys(session: Session) -> list[Key]:
    """Return the newest 1000 keys, newest first, revoked ones included."""
    return list(session.execute(select(Key).order_by(Key.id.desc()).limit(1000)).scalars())


def find(session: Session, secret: str) -> Principal | None:
    """Return the key of a secret; None if it is unknown, revoked or expired."""
    # The database compares hashes, so the timing reveals nothing about the secret.
    return _principal(session, Key.hash == _hash(secret))


def expiry(session: Session, secret: str) -> str | None:
    """Return what to tell the user of an expired key or of its browser session; None for another secret."""
    owner = select(SignInToken.key_id).where(SignInToken.hash == _hash(secret), SignInToken.kind == "session")
    is_its = or_(Key.hash == _hash(secret), Key.id.in_(owner))
    is_expired = (Key.revoked_at.is_(None), Key.expires_at <= now_ms())
    key = session.execute(select(Key).where(is_its, *is_expired)).scalars().first()
    if key is None:
        return None
    return f"the key {key.name} expired on {_day(key.expires_at)}; an administrator can rotate it, with a new time"


def of_person(database: Database, user: str, scopes: Sequence[str]) -> Principal:
    """Return the principal of a person whom a proxy has signed in; the first time, create the person's row.

    Args:
        database: of the keys.
        user: the proxy's name of the person, of 1 to 200 visible characters.
        scopes: that the person has now; the row keeps them.

    Raises:
        Forbidden: the person has no scope, or the person's row is revoked or has expired.
    """
    ordered = sorted(set(scopes), key=SCOPES.index)
    with database.read() as session:
        key, now = session.execute(_of_person(user)).scalar_one_or_none(), database_time(session)
    if key is None and not ordered:
        raise Forbidden(f"the proxy has signed {user} in, but no setting gives {user} a scope; ask an administrator")
    if key is None or (key.scopes != ordered and grants_access(key, now)):
        with contextlib.suppress(IntegrityError):  # another request of the person has created the row
            database.write(lambda session: _keep_person(session, user, ordered))
        with database.read() as session:
            key = session.execute(_of_person(user)).scalar_one()
    if not grants_access(key, now):
        raise Forbidden(f"the access of {user} is revoked or has expired; ask an administrator")
    return replace(_as_principal(key), scopes=frozenset(ordered))


def _of_person(user: str) -> Select[Key]:
    return select(Key).where(Key.proxy_user == user)


def _keep_person(session: Session, user: str, scopes: list[str]) -> None:
    key = session.execute(_of_person(user).with_for_update()).scalar_one_or_none()
    if key is not None:
        if "admin" in scopes and "admin" not in key.scopes and key.project_id == DEFAULT_PROJECT:
            key.project_id = None  # as for a new person with these scopes
        elif "admin" not in scopes and key.project_id is None:
            key.project_id = DEFAULT_PROJECT
        key.scopes = scopes
        return
    project_id = projects.of_new_key(session, None, scopes)
    key = Key(id=new_id(), name=user, hash=_hash(_new_secret()), scopes=scopes, proxy_user=user, project_id=project_id)
    session.add(key)
    session.flush()
    activity.note(session, "key.create", key.id, user, by=_as_principal(key), scopes=scopes, signed_in_by="a proxy")


def revoke(session: Session, key_id: str, *, last_administrator: bool = False) -> None:
    """Revoke a key and its browser sessions at once; a second call changes nothing.

    Args:
        session: a writing transaction.
        key_id: of the key.
        last_administrator: whether it may be the last active key with `admin`.

    Raises:
        NotFound: there is no such key.
        Conflict: it is the last active key with `admin`.
    """
    key = existing(session.get(Key, key_id), "key", key_id)
    administrators = _administrators(session, is_locking=True)
    if [each.id for each in administrators] == [key_id] and not last_administrator:
        raise Conflict(
            f"{key.name} is the last key with `admin`; create another one first, or confirm it: `last_administrator`, "
            "`--last-administrator`"
        )
    open_key = update(Key).where(Key.id == key_id, Key.revoked_at.is_(None)).values(revoked_at=now_ms())
    if session.execute(open_key.returning(Key.id)).first() is None:
        return
    session.execute(delete(SignInToken).where(SignInToken.key_id == key_id))
    activity.note(session, "key.revoke", key_id, key.name)


def _administrators(session: Session, *, is_locking: bool = False) -> list[Any]:
    """Return (id, name, scopes, expires_at) of the active keys with `admin` in all projects.

    People whom a proxy signs in are not among them.

    Locking them lets two administrators who revoke each other's key take turns.
    """
    own = (*is_active(), Key.proxy_user.is_(None), Key.project_id.is_(None))
    active = select(Key.id, Key.name, Key.scopes, Key.expires_at).where(*own).order_by(Key.id)
    with within(session, None):
        rows = session.execute(active.with_for_update(key_share=True) if is_locking else active)
    return [row for row in rows if "admin" in row.scopes]


def notice(session: Session) -> str | None:
    """Return what operators should know about the keys with `admin`: that there is none, or that all of them expire."""
    if project_of(session) is not None:  # that is for those who manage the service
        return None
    administrators = _administrators(session)
    command = f"`python -m jobs create-key NAME --scopes {','.join(ADMINISTRATOR)}` on the server's machine"
    if not administrators:
        return f"no key has the scope `admin`; {command} makes one"
    last = max(administrators, key=lambda row: (row.expires_at is None, row.expires_at or 0))
    if last.expires_at is None:
        return None
    return (
        f"the last key with `admin`, {last.name}, expires on {_day(last.expires_at)}; after that, {command} makes one"
    )


def administrators_end(session: Session) -> float:
    """Return when the last key with `admin` in all projects expires; infinite if one does not, 0 if there is none."""
    return max((math.inf if row.expires_at is None else row.expires_at for row in _administrators(session)), default=0)


def note_use(session: Session, key_id: str) -> None:
    """Record that the key was used now, at most once a minute over all servers."""
    is_old = or_(Key.last_used_at.is_(None), Key.last_used_at <= now_ms() - 60_000)
    session.execute(update(Key).where(Key.id == key_id, is_old).values(last_used_at=now_ms()))


def has_keys(session: Session) -> bool:
    """Return whether there is an active key."""
    return session.execute(select(Key.id).where(*is_active()).limit(1)).first() is not None


def ended(session: Session, principals: Collection[Principal]) -> set[Principal]:
    """Return those whose key is revoked, expired, rotated, moved or lost a scope, or whose session is over."""
    ids, hashes = {each.key_id for each in principals}, {each.session for each in principals if each.session}
    active = select(Key.id, Key.rotated_at, Key.project_id, Key.scopes).where(Key.id.in_(ids), *is_active())
    keys = {tuple(row)[:3]: frozenset(row.scopes) for row in session.execute(active)}
    open_sessions = select(SignInToken.hash).where(SignInToken.hash.in_(hashes), SignInToken.expires_at > now_ms())
    sessions = set(session.execute(open_sessions).scalars()) if hashes else set()
    return {
        each
        for each in principals
        if (scopes := keys.get((each.key_id, each.rotated_at, each.project_id))) is None
        or not each.scopes <= scopes
        or (each.session and each.session not in sessions)
    }


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
    return None if key_id is None else _new_session(session, key_id, "a link")


def new_invitation(session: Session, key_id: str) -> str:
    """Create an invitation of a machine and return its token, which works once within an hour (jobs.joining)."""
    token = _new_token(session, "worker", key_id, INVITATION_MINUTES * 60_000)
    activity.note(session, "worker.invite", invitation_id(token))
    return token


def invitation_id(token: str) -> str:
    """Return the id of the invitation with a token."""
    return _hash(token)[:_INVITATION]


@dataclass(frozen=True)
class Invitation:
    """An open invitation of a machine; its id is a part of the hash of its token."""

    id: str
    by: str
    created_at: int
    expires_at: int


def invitations(session: Session) -> list[Invitation]:
    """Return the invitations that still work, newest first."""
    is_open = (SignInToken.kind == "worker", SignInToken.expires_at > now_ms(), *is_active())
    columns = (SignInToken.hash, Key.name, SignInToken.created_at, SignInToken.expires_at)
    statement = select(*columns).join(Key, Key.id == SignInToken.key_id).where(*is_open)
    rows = session.execute(statement.order_by(SignInToken.created_at.desc(), SignInToken.hash))
    return [Invitation(digest[:_INVITATION], by, created, expires) for digest, by, created, expires in rows]


def revoke_invitation(session: Session, invitation_id: str) -> None:
    """End an invitation.

    Raises:
        NotFound: there is none of this id that still works.
    """
    if not any(each.id == invitation_id for each in invitations(session)):
        raise NotFound(f"there is no open invitation {invitation_id[:100]!r}")
    is_it = func.substr(SignInToken.hash, 1, _INVITATION) == invitation_id
    session.execute(delete(SignInToken).where(SignInToken.kind == "worker", is_it))
    activity.note(session, "worker.revoke", invitation_id)


def is_invitation(session: Session, token: str) -> bool:
    """Return whether the token is of an invitation that still works."""
    return session.execute(select(SignInToken.hash).where(*_is_token("worker", token))).first() is not None


def accept_invitation(session: Session, token: str, host: str) -> bool:
    """Use an invitation up, for the machine `host`; return False if its token is unknown, used or expired.

    An invitation ends with its key, or with that key's right to manage the service.
    """
    statement = delete(SignInToken).where(*_is_token("worker", token)).returning(SignInToken.key_id)
    key_id = session.execute(statement).scalar_one_or_none()
    principal = None if key_id is None else _as_principal(session.get_one(Key, key_id))
    if principal is None or not principal.manages_service():
        return False
    activity.note(session, "worker.join", invitation_id(token), host, by=principal)
    return True


def sign_in(session: Session, secret: str) -> str | None:
    """Exchange the secret of a key for a browser session; return None if no active key has it."""
    principal = find(session, secret)
    return None if principal is None else _new_session(session, principal.key_id, "the key")


def by_session(session: Session, token: str) -> Principal | None:
    """Return the key of a browser session; None if the session is unknown or over, or the key not active."""
    owner = select(SignInToken.key_id).where(*_is_token("session", token))
    principal = _principal(session, Key.id.in_(owner))
    return None if principal is None else replace(principal, session=_hash(token))


def end_session(session: Session, token: str) -> None:
    """End a browser session; a second call changes nothing."""
    ended = delete(SignInToken).where(SignInToken.hash == _hash(token)).returning(SignInToken.key_id)
    if (key_id := session.execute(ended).scalar_one_or_none()) is not None:
        activity.note(session, "session.end", key_id, session.get_one(Key, key_id).name)


def expire(session: Session) -> None:
    """Delete expired links, sessions and invitations."""
    session.execute(delete(SignInToken).where(SignInToken.expires_at <= now_ms()))


def ensure_local(database: Database, path: Path) -> str | None:
    """Return the secret of this machine's own key, and create the key if there is none.

    The secret is kept in a file that only its owner can read.  A key of the file that is revoked or has expired is not
    replaced: an administrator has ended it.

    Returns:
        The secret; None for a key that has ended.
    """
    stored = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    if stored:
        with database.read() as session:
            if session.execute(select(Key.id).where(Key.hash == _hash(stored))).first() is not None:
                return stored if find(session, stored) else None
    own = database.acting_for(activity.SERVER)
    secret = own.write(lambda session: create(session, "local", ADMINISTRATOR)[1])
    _write_local(path, secret)
    return secret


def keep_local(path: Path, former_hash: str, secret: str) -> None:
    """Store a new secret of this machine's own key, if the former one is in the file; else change nothing."""
    with contextlib.suppress(FileNotFoundError):
        if _hash(path.read_text(encoding="utf-8").strip()) == former_hash:
            _write_local(path, secret)


def _write_local(path: Path, secret: str) -> None:
    write_bytes(path, f"{secret}\n".encode(), mode=0o600)


def _new_session(session: Session, key_id: str, way: str) -> str:
    """Begin a browser session of a key; `way` is what it was exchanged for, as the activity log shows it."""
    key = session.get_one(Key, key_id)
    principal = _as_principal(key)
    activity.note(session, "session.begin", key.id, key.name, by=principal, signed_in_with=way)
    return _new_token(session, "session", key_id, SESSION_DAYS * 86_400_000)


def _new_token(session: Session, kind: str, key_id: str, lifetime_ms: int) -> str:
    token = secrets.token_urlsafe(32)
    session.add(SignInToken(hash=_hash(token), kind=kind, key_id=key_id, expires_at=now_ms() + lifetime_ms))
    session.flush()
    return token


def _is_token(kind: str, token: str) -> tuple[ColumnElement[bool], ...]:
    of_active = SignInToken.key_id.in_(select(Key.id).where(*is_active()))
    return SignInToken.hash == _hash(token), SignInToken.kind == kind, SignInToken.expires_at > now_ms(), of_active


def _principal(session: Session, *where: ColumnElement[bool]) -> Principal | None:
    key = session.execute(select(Key).where(*where, *is_active())).scalar_one_or_none()
    return None if key is None else _as_principal(key)


def _as_principal(key: Key) -> Principal:
    return Principal(
        key.id,
        key.name,
        frozenset(key.scopes),
        expires_at=key.expires_at,
        rotated_at=key.rotated_at,
        project_id=key.project_id,
    )


def _new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def _expiry(session: Session, days: int | None) -> int | None:
    """Return the time after some days; None for none."""
    if days is None:
        return None
    if not 1 <= days <= MAX_DAYS:
        raise Invalid([FieldError("/days", f"expected 1 to {MAX_DAYS} days, not {days}")])
    return database_time(session) + days * _DAY_MS


def _day(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
