"""The page of keys and projects: list, create, rotate and revoke keys; create, rename, limit and remove projects.

A secret is shown once, by the response that creates it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, NamedTuple

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from api.http.auth import Admin, ServiceAdmin
from api.http.dependencies import TheDatabase, TheSettings
from api.rest.keys import KeyBody, KeyChangeBody, RotateBody, rotate
from api.rest.projects import ProjectBody, ProjectName
from api.web.forms.fields import body_of
from api.web.forms.refused import form_page
from api.web.render import page
from jobs import keys, limits, policies, projects
from jobs.access import Principal
from jobs.database import DEFAULT_PROJECT, Database, database_time
from jobs.errors import FieldError, Invalid
from jobs.models import Key
from wcl_core.text import bytes_of, file_size

router = APIRouter(include_in_schema=False)

_LIFETIMES: Final = (("30", "30 days"), ("90", "90 days"), ("365", "1 year"), ("never", "never"))
_Limit = Annotated[str, Form(max_length=20)]
_Project = Annotated[str, Form(max_length=64)]  # empty: as `jobs.keys` chooses, or unchanged
_ENDED_SHOWN: Final = 20  # revoked and expired keys


class Role(NamedTuple):
    """A choice of scopes of the form."""

    name: str
    scopes: tuple[str, ...]
    text: str


ROLES: Final = (
    Role("Viewer", ("read",), "reads everything of its project"),
    Role("Member", keys.MEMBER, "submits jobs, and changes its own ones"),
    Role("Member with priorities", (*keys.MEMBER, "priority"), "may set priorities above 0"),
    Role(
        "Administrator",
        keys.ADMINISTRATOR,
        "changes the jobs of all keys of its project, and manages these keys; in all projects also workers",
    ),
)


class Limit(NamedTuple):
    """A limit of the forms: a column of the key, the rule that stands for it, and its text."""

    name: str
    policy: str
    text: str


_LIMITS: Final = (
    Limit("max_waiting", "key_waiting", "Waiting jobs"),
    Limit("max_devices", "key_devices", "Devices at once"),
    Limit("max_submissions", "key_submissions", "Submissions a minute"),
)


@router.get("/keys")
def keys_page(
    request: Request,
    admin: Admin,
    database: TheDatabase,
    key: Annotated[str, Query(max_length=36)] = "",
    project: Annotated[str, Query(max_length=36, description="A project whose limits have changed.")] = "",
) -> Response:
    """Return the list of keys, with a form for a new one, and forms that change the key that the address names."""
    return _keys_page(request, database, chosen=key, changed_project=project)


@router.post("/keys")
def create(
    request: Request,
    admin: Admin,
    database: TheDatabase,
    name: Annotated[str, Form()] = "",
    scopes: Annotated[str, Form()] = ",".join(keys.MEMBER),
    days: Annotated[str, Form()] = "",
    key: Annotated[str, Form(max_length=200)] = "",
    max_waiting: _Limit = "",
    max_devices: _Limit = "",
    max_submissions: _Limit = "",
    project: _Project = "",
) -> Response:
    """Create a key and show its secret once; a form that is sent again creates nothing."""
    limits = _limits(max_waiting, max_devices, max_submissions)
    facts = {"name": name.strip(), "scopes": scopes.split(","), "days": _days(days)}
    body = body_of(KeyBody, facts | limits | {"project": project or None})

    def change(session: Session) -> tuple[Key, str] | None:
        if key and keys.was_sent(session, key):
            return None
        return keys.create(session, body.name, body.scopes, body.days, key, body.limits, body.project)

    result = database.write(change)
    if result is None:
        return RedirectResponse("/keys", status_code=303)
    return _keys_page(request, database, new=result)


@router.post("/keys/{key_id}/limits")
def change_limits(
    key_id: str,
    admin: Admin,
    database: TheDatabase,
    max_waiting: _Limit = "",
    max_devices: _Limit = "",
    max_submissions: _Limit = "",
    project: _Project = "",
    name: Annotated[str, Form()] = "",
    scopes: Annotated[str, Form()] = "",
    days: Annotated[str, Form()] = "keep",
) -> Response:
    """Change name, scopes, expiry, limits or project of a key; redirect to its forms."""
    facts: dict[str, Any] = _limits(max_waiting, max_devices, max_submissions) | {"project": project or None}
    facts |= {"name": name.strip() or None, "scopes": scopes.split(",") if scopes else None}
    facts |= {} if days == "keep" else {"days": _days(days)}
    body = body_of(KeyChangeBody, facts)
    database.write(lambda session: body.apply(session, key_id))
    return RedirectResponse(f"/keys?key={key_id}#change", status_code=303)


def _days(typed: str) -> str | None:
    """Return the days of a form; None for never.  An empty field would count as an absent one."""
    return None if typed.strip() in ("", "never") else typed.strip()


def _limits(*typed: str) -> dict[str, str | None]:
    return {name: text.strip() or None for name, text in zip(keys.LIMITS, typed, strict=True)}


@router.post("/projects")
def create_project(admin: ServiceAdmin, database: TheDatabase, name: _Project = "") -> Response:
    """Create a project; redirect to the keys."""
    body = body_of(ProjectName, {"name": name.strip()})
    database.write(lambda session: projects.create(session, body.name))
    return RedirectResponse("/keys#projects", status_code=303)


@router.post("/projects/{project_id}")
def change_project(
    project_id: str,
    admin: ServiceAdmin,
    database: TheDatabase,
    name: _Project = "",
    max_gpus: _Limit = "",
    max_waiting: _Limit = "",
    max_bytes: _Limit = "",
) -> Response:
    """Rename a project and change its limits; redirect to the keys."""
    size = max_bytes.strip()
    if size and bytes_of(size) is None:
        raise Invalid([FieldError("/max_bytes", f"expected a size such as 500 GiB, not {size}")])
    limits = {"max_gpus": max_gpus.strip() or None, "max_waiting": max_waiting.strip() or None}
    body = body_of(ProjectBody, {"name": name.strip(), "max_bytes": bytes_of(size), **limits})
    database.write(lambda session: projects.change(session, project_id, body.name, body.limits))
    return RedirectResponse(f"/keys?project={project_id}#projects", status_code=303)


@router.post("/projects/{project_id}/remove")
def remove_project(project_id: str, admin: ServiceAdmin, database: TheDatabase, name: _Project = "") -> Response:
    """Remove a project; redirect to the keys.  The form has a name, too, so that its page can be shown again."""
    database.write(lambda session: projects.remove(session, project_id))
    return RedirectResponse("/keys#projects", status_code=303)


@router.post("/keys/{key_id}/rotate")
def rotate_key(
    request: Request,
    key_id: str,
    admin: Admin,
    database: TheDatabase,
    settings: TheSettings,
    days: Annotated[str, Form()] = "keep",
    rotated_at: Annotated[str, Form(pattern="^[0-9]{0,16}$")] = "",
) -> Response:
    """Give a key a new secret and show it once; a form that is sent again changes nothing."""
    chosen: keys.Days = "keep" if days == "keep" else body_of(RotateBody, {"days": _days(days)}).days
    seen = int(rotated_at) if rotated_at else None
    return _keys_page(request, database, new=rotate(database, settings, key_id, chosen, seen))


@router.post("/keys/{key_id}/revoke")
def revoke_key(
    key_id: str,
    admin: Admin,
    database: TheDatabase,
    last_administrator: Annotated[bool, Form()] = False,
) -> Response:
    """Revoke a key; redirect to the list."""
    database.write(lambda session: keys.revoke(session, key_id, last_administrator=last_administrator))
    return RedirectResponse("/keys", status_code=303)


def _size(num_bytes: int | None) -> str:
    """Return a limit of storage as text that stands for this very number."""
    text = file_size(num_bytes or 0).replace(".0 ", " ")
    return "" if num_bytes is None else text if bytes_of(text) == num_bytes else f"{num_bytes} B"


def _keys_page(
    request: Request,
    database: Database,
    new: tuple[Key, str] | None = None,
    chosen: str = "",
    changed_project: str = "",
) -> Response:
    with database.read() as session:
        rows, notice, now = keys.list_keys(session), keys.notice(session), database_time(session)
        of_service, in_order, names = policies.stored(session), projects.every(session), projects.by_id(session)
        named = new[0] if new else next((row for row in rows if row.id == chosen and row.revoked_at is None), None)
        warnings = [keys.namesakes(session, named), limits.excess_of_key(session, named.id)] if named else []
        if changed_project in {row.id for row in in_order}:
            warnings.append(limits.excess_of_project(session, changed_project))
    active = [row for row in rows if keys.grants_access(row, now)]
    ended = [row for row in rows if not keys.grants_access(row, now)]
    administrators = [row.id for row in active if "admin" in row.scopes and row.project_id is None]
    context: dict[str, Any] = {"active": active, "ended": ended[:_ENDED_SHOWN], "num_ended": len(ended)}
    context |= {"chosen": next((row for row in rows if row.id == chosen and row.revoked_at is None), None)}
    context |= {"is_last_administrator": administrators == [chosen], "notice": notice, "new": new}
    context |= {"limits": _LIMITS, "defaults": [getattr(of_service, each.policy) for each in _LIMITS]}
    context |= {"default_project": DEFAULT_PROJECT}
    context |= {"warnings": [each for each in warnings if each], "projects": in_order, "names": names}
    context |= {"sizes": {row.id: _size(row.max_bytes) for row in in_order}}
    role_choices = [(",".join(role.scopes), role.name) for role in ROLES]
    scopes = ",".join(named.scopes) if named else ""
    own_role = [(scopes, ", ".join(named.scopes))] if named and scopes not in dict(role_choices) else []
    context |= {"roles": ROLES, "role_choices": role_choices, "own_roles": role_choices + own_role}
    context |= {"member": ",".join(keys.MEMBER), "project_choices": [(row.name, row.name) for row in in_order]}
    return page(request, "keys.html", **context, lifetimes=_LIFETIMES, now=now)


def _refused_key(request: Request, admin: Principal, database: Database) -> Response:
    return _keys_page(request, database, chosen=request.path_params.get("key_id", ""))


form_page(_refused_key, "/keys", "/keys/{key_id}/limits", "/keys/{key_id}/rotate", "/keys/{key_id}/revoke")
form_page(_refused_key, "/projects", "/projects/{project_id}", conflicting="name")
form_page(_refused_key, "/projects/{project_id}/remove")
