"""API keys and sign-in links."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from api.http.auth import Admin, AnyKey
from api.http.dependencies import TheDatabase
from api.rest.job_bodies import Name
from api.rest.responses import Response, Time
from jobs import keys

router = APIRouter(prefix="/v1", tags=["access"])


class KeyBody(BaseModel):
    """A key to create."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "laptop", "scopes": ["read", "submit"]}]}
    )

    name: Name
    scopes: Annotated[list[Literal["read", "submit", "priority", "admin"]], Field(min_length=1, max_length=4)]


class KeyResponse(Response):
    """A key without its secret; `last_used_at` may lag a minute behind."""

    id: str
    name: str
    scopes: list[str]
    created_at: Time
    last_used_at: Time | None
    revoked_at: Time | None


class NewKey(KeyResponse):
    """A new key with its secret.  No other response contains the secret."""

    key: str


class Keys(Response):
    """Newest first, with the revoked ones."""

    items: list[KeyResponse]


class Link(Response):
    """A link that signs one browser in; it works once."""

    url: str
    expires_in_seconds: int


@router.get("/keys")
def list_keys(principal: Admin, database: TheDatabase) -> Keys:
    """List all keys, without their secrets."""
    with database.read() as session:
        return Keys(items=[KeyResponse.of(row) for row in keys.list_keys(session)])


@router.post("/keys", status_code=201)
def create_key(body: KeyBody, principal: Admin, database: TheDatabase) -> NewKey:
    """Create a key and return its secret.  No other response contains the secret."""
    row, secret = database.write(lambda session: keys.create(session, body.name, body.scopes))
    return NewKey.of(row, key=secret)


@router.delete("/keys/{key_id}", status_code=204)
def revoke_key(key_id: str, principal: Admin, database: TheDatabase) -> None:
    """Revoke a key, and sign out the browsers that signed in with it, at once."""
    database.write(lambda session: keys.revoke(session, key_id))


@router.post("/sign-in-links", status_code=201)
def create_link(request: Request, principal: AnyKey, database: TheDatabase) -> Link:
    """Create a link that signs one browser in with the scopes of this key."""
    token = database.write(lambda session: keys.new_link(session, principal.key_id))
    return Link(url=f"{request.base_url}sign-in?token={token}", expires_in_seconds=keys.LINK_MINUTES * 60)
