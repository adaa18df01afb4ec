"""Links that show a run or a comparison without a key: create, list, revoke."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from api.http.auth import Owner, Submitter
from api.http.dependencies import TheDatabase, TheSettings
from api.rest.responses import Response, Time
from jobs import shares
from jobs.comparisons import MAX_JOBS
from jobs.shares import Link

router = APIRouter(prefix="/v1/shares", tags=["jobs"])


class ShareBody(BaseModel):
    """A link to create: to one job, or to the comparison of several."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"jobs": ["0198f2a0-0000-7000-8000-000000000001"], "days": 7}]},
    )

    jobs: Annotated[list[str], Field(min_length=1, max_length=MAX_JOBS, description="Ids of jobs.")]
    days: Annotated[int, Field(ge=1, le=shares.MAX_DAYS, description="The link expires after this time.")] = shares.DAYS


class SharedJob(Response):
    """A job that a link shows."""

    id: str
    name: str


class ShareResponse(Response):
    """A link without its secret; `is_open` is false once it is expired or revoked, or its key is.

    `jobs` are those that are not deleted.
    """

    id: str
    jobs: list[SharedJob]
    is_open: bool
    created_by_name: str
    created_at: Time
    expires_at: Time
    revoked_at: Time | None
    revoked_by_name: str | None


class NewShare(Response):
    """A new link with its address.  No other response contains the address."""

    id: str
    url: str
    expires_at: Time


class Shares(Response):
    """Newest first; `allowed` is false if links are switched off on this server, and then none shows anything."""

    items: list[ShareResponse]
    allowed: bool


@router.post("", status_code=201)
def create(
    body: ShareBody, request: Request, principal: Submitter, database: TheDatabase, settings: TheSettings
) -> NewShare:
    """Create a link that shows jobs to everyone who has its address, read-only, until it expires.

    It shows names, states, settings, notes, evaluations and curves of these jobs, and nothing else.
    """
    shares.check_allowed(settings.shared_links)
    created = database.write(lambda session: shares.create(session, body.jobs, body.days, principal))
    assert created is not None, "only a form can be sent again"
    share, secret = created
    return NewShare.of(share, url=address_of(request, secret))


def address_of(request: Request, secret: str) -> str:
    """Return the address of a link."""
    return f"{request.base_url}shared/{secret}"


@router.get("")
def list_shares(principal: Submitter, database: TheDatabase, settings: TheSettings) -> Shares:
    """List the links that the key created, or all links for an administrator."""
    with database.read() as session:
        items = [_response(link) for link in shares.links(session, principal)]
    return Shares(items=items, allowed=settings.shared_links)


def _response(link: Link) -> ShareResponse:
    jobs = [SharedJob(id=job_id, name=name) for job_id, name in link.jobs]
    return ShareResponse.of(link.share, jobs=jobs, is_open=link.is_open)


@router.delete("/{share_id}", status_code=204)
def revoke(share_id: str, principal: Owner, database: TheDatabase) -> None:
    """Revoke a link at once."""
    database.write(lambda session: shares.revoke(session, share_id, principal))
