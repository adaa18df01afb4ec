"""Projects: list, create, rename."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api.http.auth import Reader, ServiceAdmin
from api.http.dependencies import TheDatabase
from api.rest.responses import Response
from jobs import projects

router = APIRouter(prefix="/v1/projects", tags=["access"])


class ProjectName(BaseModel):
    """The name of a project to create or to rename."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "vision"}]})

    name: Annotated[str, Field(max_length=64, description="Of a-z, 0-9, `.`, `_` and `-`, a letter or digit first.")]


class ProjectResponse(Response):
    """A project: its keys see what they submit, and nothing of other projects."""

    id: str
    name: str


class Projects(Response):
    """The projects that the key sees, by name: its own one, or all."""

    items: list[ProjectResponse]


@router.get("")
def list_projects(principal: Reader, database: TheDatabase) -> Projects:
    """List the projects that the key sees."""
    with database.read() as session:
        return Projects(items=[ProjectResponse.of(row) for row in projects.every(session)])


@router.post("", status_code=201)
def create_project(body: ProjectName, principal: ServiceAdmin, database: TheDatabase) -> ProjectResponse:
    """Create a project; keys get into it by `project` of `POST /v1/keys` and `PATCH /v1/keys/{key_id}`."""
    return ProjectResponse.of(database.write(lambda session: projects.create(session, body.name)))


@router.patch("/{project_id}")
def rename_project(
    project_id: str, body: ProjectName, principal: ServiceAdmin, database: TheDatabase
) -> ProjectResponse:
    """Rename a project; its keys and their jobs stay in it."""
    return ProjectResponse.of(database.write(lambda session: projects.rename(session, project_id, body.name)))
