"""The activity log: who did what, to which object, and when.

Each change that a person or a key requests adds an entry in its own transaction, so there is no change without an entry
and no entry without a change.  Changes by workers and reconcilers add none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from jobs.access import Principal, principal_of
from jobs.database import Database, new_id, now_ms
from jobs.errors import FieldError, Invalid
from jobs.models import Activity, Key

OPERATOR: Final = Principal("", "an operator's command", frozenset())  # of `python -m jobs`
SERVER: Final = Principal("", "the server at its start", frozenset())
_MOST_FACTS = 1_000  # characters of one value
_JOBS: Final = ("cancel", "pause", "resume", "archive", "unarchive")
ACTIONS: Final = {  # every action, by the kind of its object
    "job": ("submit", "change", *_JOBS, "reference", "unreference", "clean", "delete", "restore", "purge"),
    "jobs": _JOBS,  # of many jobs at once; each has its own entry, too
    "sweep": ("submit", "cancel"),
    "checkpoint": ("pin", "unpin", "delete"),
    "weights": ("import", "remove"),
    "dataset": ("add", "read", "rename", "remove"),
    "worker": ("drain", "cordon", "uncordon", "invite", "revoke", "join"),
    "share": ("create", "revoke"),
    "view": ("save", "remove"),
    "webhook": ("create", "change", "test", "redeliver", "remove"),
    "project": ("create", "change", "rename", "remove"),
    "key": ("create", "change", "rotate", "revoke", "link"),
    "session": ("begin", "end"),
    "backup": ("create", "restore"),
}


def note(
    session: Session,
    action: str,
    object_id: str,
    name: str = "",
    /,
    *,
    by: Principal | None = None,
    **facts: Any,
) -> None:
    """Add an entry, if a person or a key causes the change.

    Args:
        session: the transaction of the change.
        action: the object's kind and what happens to it, such as `job.cancel`.
        object_id: of the object; a name where that is its id.
        name: of the object, at this time.
        by: the principal; by default that of the transaction.
        **facts: what else the entry holds, without those that are None; no secret.
    """
    if by is not None or principal_of(session) is not None:
        noted(session, action, object_id, name, by=by, **facts)


def noted(
    session: Session, action: str, object_id: str, name: str = "", /, *, by: Principal | None = None, **facts: Any
) -> Activity:
    """Add an entry as `note`, and return it; a principal causes the change."""
    principal = by or principal_of(session)
    assert principal is not None
    row = Activity(**_entry(principal, action, object_id, name, facts))
    session.add(row)
    return row


_NOUNS: Final = {"share": "shared link", "view": "saved view", "weights": "imported weights"}
_VERBS: Final = {
    "pause": "paused",
    "read": "read again:",
    "remove": "removed",
    "submit": "submitted",
    "unpin": "unpinned",
    "pin": "pinned",
    "redeliver": "sent again a message of",
    "test": "sent a test message of",
    "clean": "removed checkpoints of",
    "purge": "removed for ever",
    "reference": "set as reference:",
    "unreference": "no longer a reference:",
}
_TITLES: Final = {
    "session.begin": "Signed in",
    "session.end": "Signed out",
    "key.link": "Made a sign-in link of a key",
    "worker.invite": "Invited a worker",
    "worker.revoke": "Revoked an invitation of a worker",
    "worker.join": "Let a worker join",
    "backup.create": "Made a backup",
    "backup.restore": "Restored files of a backup",
}


def title(action: str) -> str:
    """Return an action for people.

    >>> title("job.cancel"), title("jobs.archive"), title("project.change"), title("worker.drain")
    ('Cancelled job', 'Archived jobs', 'Changed project', 'Drained worker')
    """
    if action in _TITLES:
        return _TITLES[action]
    kind, _, verb = action.partition(".")
    past = _VERBS.get(verb) or f"{verb}{'d' if verb.endswith('e') else 'led' if verb.endswith('el') else 'ed'}"
    return f"{past[:1].upper()}{past[1:]} {_NOUNS.get(kind, kind)}".replace("_", " ")


def described(details: Mapping[str, Any] | None) -> str:
    """Return the details of an entry for people; of a changed value also the old one, where the entry has it.

    >>> described({"priority": 5, "tags": ["a", "b"], "former": {"priority": 0, "tags": []}})
    'priority 0 → 5, tags none → a, b'
    >>> described({"former": "vision"})
    'before: vision'
    """
    return ", ".join(f"{name} {text}" for name, text in facts_of(details))


def facts_of(details: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return the details of an entry for people, each with its name; arguments as for `described`."""
    facts = {name: value for name, value in (details or {}).items() if name != "job"}
    former = facts.pop("former", facts.pop("before", None))
    olds = former if isinstance(former, dict) else {}
    parts = [part for name, value in facts.items() for part in _facts(name, value, olds)]
    return [*parts, *([("before:", former)] if isinstance(former, str) else [])]


def _facts(name: str, value: Any, olds: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a detail with its name, and with the old value if there is one; of a table, each of its values."""
    old = olds.get(name)
    if isinstance(value, dict):
        inner = old if isinstance(old, dict) else {}
        return [fact for each, part in value.items() for fact in _facts(each, part, inner)]
    words = name.replace("_", " ").replace("gpu", "GPU")
    return [(words, f"{_value(old)} → {_value(value)}" if name in olds else _value(value))]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else "none" if value is None else str(value)


def rows_of(session: Session, action: str, objects: Sequence[tuple[str, str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows that `note` would add for each (object's id, its name, facts)."""
    principal = principal_of(session)
    return [] if principal is None else [_entry(principal, action, *each) for each in objects]


def _entry(principal: Principal, action: str, object_id: str, name: str, facts: dict[str, Any]) -> dict[str, Any]:
    details = {
        each: value[:_MOST_FACTS] if isinstance(value, str) else value
        for each, value in facts.items()
        if value is not None
    }
    return {
        "id": new_id(),
        "actor_id": principal.key_id,
        "actor": principal.name,
        "action": action,
        "object_id": object_id,
        "object_name": name,
        "details": details or None,
    }


def entries(
    session: Session,
    *,
    actor: str | None = None,
    action: str | None = None,
    target: str | None = None,
    since: int | None = None,
    until: int | None = None,
    before: str | None = None,
    limit: int = 100,
) -> Sequence[Activity]:
    """Return entries, newest first.

    Args:
        session: a reading transaction.
        actor: the name or the id of the person or key.
        action: an action, or its first part, such as `job`.
        target: the id or the name of the object.
        since, until: milliseconds since 1970; `until` is exclusive.
        before: the id of an entry; only older ones.
        limit: the most entries.

    Raises:
        Invalid: no entry matches, and there is no such action or actor.
    """
    statement = select(Activity).order_by(Activity.id.desc()).limit(limit)
    if actor:
        statement = statement.where(or_(Activity.actor == actor, Activity.actor_id == actor))
    if action:
        family = Activity.action.startswith(f"{action}.", autoescape=True)
        statement = statement.where(or_(Activity.action == action, family))
    if target:
        statement = statement.where(or_(Activity.object_id == target, Activity.object_name == target))
    if since is not None:
        statement = statement.where(Activity.at >= since)
    if until is not None:
        statement = statement.where(Activity.at < until)
    if before is not None:
        statement = statement.where(Activity.id < before)
    if not (rows := session.execute(statement).scalars().all()):
        _check_action(action)
        _check_actor(session, actor)
    return rows


def _check_action(action: str | None) -> None:
    kind, _, verb = (action or "").partition(".")
    if not action or (kind in ACTIONS and (not verb or verb in ACTIONS[kind])):
        return
    expected = [f"{kind}.{each}" for each in ACTIONS[kind]] if kind in ACTIONS else [*ACTIONS, "job.cancel"]
    raise Invalid([FieldError("action", f"no action is called {action!r}; expected one such as {', '.join(expected)}")])


def _check_actor(session: Session, actor: str | None) -> None:
    if not actor:
        return
    in_log = select(Activity.id).where(or_(Activity.actor == actor, Activity.actor_id == actor)).limit(1)
    of_key = select(Key.id).where(or_(Key.name == actor, Key.id == actor)).limit(1)
    if session.execute(in_log).first() is None and session.execute(of_key).first() is None:
        advice = "`wcl keys list --all` lists the keys"
        raise Invalid([FieldError("actor", f"neither the log nor a key has the name or id {actor!r}; {advice}")])


def expire(database: Database, days: float) -> None:
    """Delete entries that are older than some days."""
    old = delete(Activity).where(Activity.at < now_ms() - int(days * 86_400_000))
    database.write(lambda session: session.execute(old))
