"""Keys and sign-in links, by REST."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from api.http.auth import Admin, Anybody
from api.http.dependencies import TheDatabase
from api.rest.job_bodies import Name
from api.rest.rendering import iso, iso_or_none
from jobs import keys
from jobs.models import Key

router = APIRouter(prefix="/v1", tags=["access"])


class KeyBody(BaseModel):
    """A key to make."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "laptop", "scopes": ["read", "submit"]}]}
    )

    name: Name
    scopes: Annotated[list[Literal["read", "submit", "admin", "worker"]], Field(min_length=1, max_length=4)]


class KeyAnswer(TypedDict):
    """A key without its secret; `last_used_at` may lag a minute behind."""

    id: str
    name: str
    scopes: list[str]
    created_at: str
    last_used_at: str | None
    revoked_at: str | None


class NewKey(KeyAnswer):
    """The only answer that holds the secret."""

    key: str


class Keys(TypedDict):
    """Newest first, revoked ones too."""

    items: list[KeyAnswer]


class Link(TypedDict):
    """Opens the page signed in; works once."""

    url: str
    expires_in_seconds: int


@router.get("/keys")
def list_keys(principal: Admin, database: TheDatabase) -> Keys:
    """All keys, without their secrets."""
    with database.read() as session:
        return {"items": [_rendered(row) for row in keys.list_keys(session)]}


@router.post("/keys", status_code=201)
def create_key(body: KeyBody, principal: Admin, database: TheDatabase) -> NewKey:
    """Make a key; its secret is in this answer and nowhere else."""
    row, secret = database.write(lambda session: keys.create(session, body.name, body.scopes))
    return {**_rendered(row), "key": secret}


@router.delete("/keys/{key_id}", status_code=204)
def revoke_key(key_id: str, principal: Admin, database: TheDatabase) -> None:
    """End a key, and the browsers that signed in by it, at once."""
    database.write(lambda session: keys.revoke(session, key_id))


@router.post("/sign-in-links", status_code=201)
def create_link(request: Request, principal: Anybody, database: TheDatabase) -> Link:
    """A link that signs one browser in with the scopes of this key."""
    token = database.write(lambda session: keys.new_link(session, principal.key_id))
    return {"url": f"{request.base_url}sign-in?token={token}", "expires_in_seconds": keys.LINK_MINUTES * 60}


def _rendered(row: Key) -> KeyAnswer:
    return {
        "id": row.id,
        "name": row.name,
        "scopes": row.scopes,
        "created_at": iso(row.created_at),
        "last_used_at": iso_or_none(row.last_used_at),
        "revoked_at": iso_or_none(row.revoked_at),
    }
