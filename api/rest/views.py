"""Saved views of the list of jobs: save, list, remove."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api.http.auth import Owner, Reader, Submitter
from api.http.dependencies import TheDatabase
from api.rest.responses import Response, Time
from jobs import views

router = APIRouter(prefix="/v1/views", tags=["jobs"])


class ViewBody(BaseModel):
    """A view to save; `query` is that of the page of jobs.  A view of this key with the same name is replaced."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "running", "query": "status=running&group=method"}]}
    )

    name: Annotated[str, Field(min_length=1, max_length=views.MAX_NAME)]
    query: Annotated[str, Field(max_length=views.MAX_QUERY)] = ""
    shared: bool = False


class ViewResponse(Response):
    """A saved view; `/?` and its `query` is the page that shows it."""

    id: str
    name: str
    query: str
    is_shared: bool
    created_by_name: str
    created_at: Time


class Views(Response):
    """By name: those of this key, and those that others share."""

    items: list[ViewResponse]


@router.get("")
def list_views(principal: Reader, database: TheDatabase) -> Views:
    """List the saved views of this key, and those that others share."""
    with database.read() as session:
        return Views(items=[ViewResponse.of(row) for row in views.listed(session, principal)])


@router.post("", status_code=201)
def save_view(body: ViewBody, principal: Submitter, database: TheDatabase) -> ViewResponse:
    """Save filters, group and order of the list of jobs under a name."""
    row = database.write(lambda session: views.save(session, principal, body.name, body.query, is_shared=body.shared))
    return ViewResponse.of(row)


@router.delete("/{view_id}", status_code=204)
def remove_view(view_id: str, principal: Owner, database: TheDatabase) -> None:
    """Remove a saved view."""
    database.write(lambda session: views.remove(session, principal, view_id))
