"""API keys and sign-in links."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from api.http.auth import Admin, AnyKey
from api.http.dependencies import TheDatabase, TheSettings
from api.http.idempotency import TheKeyCreation
from api.rest.job_bodies import Name
from api.rest.responses import Response, Time
from jobs import keys, limits, policies, projects
from jobs.access import Principal
from jobs.database import Database, database_time
from jobs.errors import existing
from jobs.models import Key
from jobs.settings import ScopeName, Settings
from wcl_core.version import VERSION

router = APIRouter(prefix="/v1", tags=["access"])

DaysOrNever = Annotated[
    int | None, Field(ge=1, le=keys.MAX_DAYS, description="Days until it expires; null: it does not expire.")
]


LimitOrDefault = Annotated[int | None, Field(ge=1, le=keys.MAX_LIMIT)]


ProjectName = Annotated[
    str, Field(max_length=64, description="Name of a project; `*` for all projects, which a key of all may give.")
]


class _Limits(BaseModel):
    """Limits of a key; `null` stands for the service's own one (`WCL_KEY_WAITING` and so on)."""

    model_config = ConfigDict(extra="forbid")

    max_waiting: LimitOrDefault = Field(default=None, description="Most waiting jobs.")
    max_devices: LimitOrDefault = Field(default=None, description="Most devices that its jobs use at once.")
    max_submissions: LimitOrDefault = Field(default=None, description="Most jobs that it submits within a minute.")

    @property
    def limits(self) -> dict[str, int | None]:
        """The limits that the request names."""
        return {name: getattr(self, name) for name in keys.LIMITS if name in self.model_fields_set}


class KeyChangeBody(_Limits):
    """Name, scopes, expiry, limits and project to change; what the body does not name stays.

    The key's jobs stay in the project that they were submitted in.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"scopes": ["read", "submit"], "max_waiting": 200}]})

    name: Name | None = None
    scopes: Annotated[list[ScopeName], Field(min_length=1, max_length=4)] | None = None
    days: DaysOrNever = None
    project: ProjectName | None = None

    def apply(self, session: Session, key_id: str) -> Key:
        """Change the key, as `jobs.keys.change`."""
        days: keys.Days = self.days if "days" in self.model_fields_set else "keep"
        return keys.change(session, key_id, self.limits, self.project, name=self.name, scopes=self.scopes, days=days)


class KeyBody(_Limits):
    """A key to create."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "laptop", "scopes": ["read", "submit"], "days": 90}]}
    )

    name: Name
    scopes: Annotated[list[ScopeName], Field(min_length=1, max_length=4)] = list(keys.MEMBER)
    days: DaysOrNever = None
    project: ProjectName | None = None


class RotateBody(BaseModel):
    """When the key expires; without `days` that time stays, and `null` is never."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"days": 90}]})

    days: DaysOrNever = None


class KeyResponse(Response):
    """A key without its secret; `last_used_at` may lag a minute behind.

    `expires_at` is null for a key that does not expire; `rotated_at` says when it got its present secret, if that is
    not its first one.  A limit of null is that of the service.  `proxy_user` names the person whom a proxy signs in;
    the row owns what the person submits.  `project` names its project; null for a key of all projects.  `warning` says
    of a new or renamed key that other keys have its name, and after a change of limits what is beyond them now.
    """

    id: str
    name: str
    scopes: list[str]
    created_at: Time
    last_used_at: Time | None
    revoked_at: Time | None
    expires_at: Time | None
    rotated_at: Time | None
    max_waiting: int | None
    max_devices: int | None
    max_submissions: int | None
    is_active: bool
    proxy_user: str | None
    project: str | None
    warning: str | None


class WhoAmI(KeyResponse):
    """The key of the request.

    `role` is `viewer`, `member`, `administrator of a project` or `administrator`; limits of null are those of `limits`,
    the service's own ones, where null is no limit.  `version` is that of the server.
    """

    role: str
    limits: dict[str, int | None]
    version: str


class NewKey(KeyResponse):
    """A new or rotated key with its secret.  No other response contains the secret."""

    key: str


class CreatedKey(KeyResponse):
    """A new key with its secret, which is null in the response to a repeated request."""

    key: str | None


class Keys(Response):
    """Newest first, with the revoked ones; `notice` warns if no key has `admin`, or if all that have it expire."""

    items: list[KeyResponse]
    notice: str | None


class Link(Response):
    """A link that signs one browser in; it works once."""

    url: str
    expires_in_seconds: int


@router.get("/keys")
def list_keys(principal: Admin, database: TheDatabase) -> Keys:
    """List all keys, without their secrets."""
    with database.read() as session:
        now = database_time(session)
        names = projects.by_id(session)
        items = [
            KeyResponse.of(
                row, is_active=keys.grants_access(row, now), project=names.get(row.project_id or ""), warning=None
            )
            for row in keys.list_keys(session)
        ]
        return Keys(items=items, notice=keys.notice(session))


@router.post(
    "/keys", status_code=201, responses={200: {"description": "A replay: the key that the first request created."}}
)
def create_key(body: KeyBody, principal: Admin, database: TheDatabase, creation: TheKeyCreation) -> CreatedKey:
    """Create a key and return its secret.  No other response contains the secret.

    With `Idempotency-Key`, a repeated request gets the first request's key, with status 200,
    `Idempotency-Replayed: true` and null as its secret, which the server does not store.  A client that has lost the
    first response rotates the key.
    """
    secrets: list[str] = []

    def create(session: Session) -> Key:
        row, secret = keys.create(session, body.name, body.scopes, body.days, limits=body.limits, project=body.project)
        secrets.append(secret)  # of the last one, if the transaction is repeated
        return row

    row = creation.create(body.model_dump(), Key, create, count=0)
    with database.read() as session:
        facts = {"is_active": keys.grants_access(row, database_time(session)), "project": _project(session, row)}
        facts["warning"] = keys.namesakes(session, row)
    return CreatedKey.of(row, key=None if creation.is_replay else secrets[-1], **facts)


@router.patch("/keys/{key_id}")
def change_key(key_id: str, body: KeyChangeBody, principal: Admin, database: TheDatabase) -> KeyResponse:
    """Change name, scopes, expiry or limits of a key, or move it to another project; its secret stays.

    The changes hold at once, also for browser sessions and waiting jobs.
    """
    row = database.write(lambda session: body.apply(session, key_id))
    with database.read() as session:
        is_active = keys.grants_access(row, database_time(session))
        warnings = (
            None if body.name is None else keys.namesakes(session, row),
            limits.excess_of_key(session, key_id) if body.limits else None,
        )
        warning = "; ".join(each for each in warnings if each is not None) or None
        return KeyResponse.of(row, is_active=is_active, project=_project(session, row), warning=warning)


@router.get("/whoami")
def whoami(principal: AnyKey, database: TheDatabase) -> WhoAmI:
    """Return the key of the request, with its role, scopes, project and limits, and the version of the server."""
    with database.read() as session:
        row, rules = existing(session.get(Key, principal.key_id), "the key"), policies.stored(session)
        facts: dict[str, Any] = {"is_active": True, "project": _project(session, row), "warning": None}
        facts["role"] = _role(principal)
        facts["limits"] = {name: getattr(rules, name.replace("max_", "key_")) for name in keys.LIMITS}
        return WhoAmI.of(row, **facts, scopes=sorted(principal.scopes, key=keys.SCOPES.index), version=VERSION)


def _role(principal: Principal) -> str:
    if principal.manages_service():
        return "administrator"
    if "admin" in principal.scopes:
        return "administrator of a project"
    return "member" if "submit" in principal.scopes else "viewer"


@router.post("/keys/{key_id}/rotate")
def rotate_key(
    key_id: str, principal: Admin, database: TheDatabase, settings: TheSettings, body: RotateBody | None = None
) -> NewKey:
    """Give a key a new secret and return it; the former secret and the key's browser sessions end at once.

    The key keeps its id, and with it its jobs, webhooks and links.
    """
    days: keys.Days = body.days if body is not None and body.model_fields_set else "keep"
    row, secret = rotate(database, settings, key_id, days)
    with database.read() as session:
        return NewKey.of(row, key=secret, is_active=True, project=_project(session, row), warning=None)


def _project(session: Session, row: Key) -> str | None:
    return projects.by_id(session).get(row.project_id or "")


def rotate(
    database: Database, settings: Settings, key_id: str, days: keys.Days, seen: int | Literal["any"] | None = "any"
) -> tuple[Key, str]:
    """Rotate a key; if it is this machine's own one (`wcl up`), store its new secret in the file."""
    row, secret, former_hash = database.write(lambda session: keys.rotate(session, key_id, days, seen))
    keys.keep_local(settings.data_dir / "key", former_hash, secret)
    return row, secret


@router.delete("/keys/{key_id}", status_code=204)
def revoke_key(
    key_id: str,
    principal: Admin,
    database: TheDatabase,
    last_administrator: Annotated[bool, Query(description="Also if it is the last active key with `admin`.")] = False,
) -> None:
    """Revoke a key, and sign out the browsers that signed in with it, at once."""
    database.write(lambda session: keys.revoke(session, key_id, last_administrator=last_administrator))


@router.post("/sign-in-links", status_code=201)
def create_link(request: Request, principal: AnyKey, database: TheDatabase) -> Link:
    """Create a link that signs one browser in with the scopes of this key."""
    token = database.write(lambda session: keys.new_link(session, principal.key_id))
    return Link(url=f"{request.base_url}sign-in?token={token}", expires_in_seconds=keys.LINK_MINUTES * 60)
