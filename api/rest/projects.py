"""Projects: list, create, rename, limit, remove."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api.http.auth import Reader, ServiceAdmin
from api.http.dependencies import TheDatabase
from api.rest.responses import Response
from jobs import limits, projects

router = APIRouter(prefix="/v1/projects", tags=["access"])


class ProjectName(BaseModel):
    """The name of a project to create or to rename."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "vision"}]})

    name: Annotated[str, Field(max_length=64, description="Of a-z, 0-9, `.`, `_` and `-`, a letter or digit first.")]


_Limit = Annotated[int | None, Field(ge=1, le=projects.LIMITS["max_waiting"])]


class ProjectBody(BaseModel):
    """A new name, and limits to change; what the body does not name stays, and a limit of `null` is none."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"max_gpus": 4, "max_waiting": 500, "max_bytes": 1 << 40}]}
    )

    name: Annotated[str, Field(max_length=64, description="As of `POST /v1/projects`.")] | None = None
    max_waiting: _Limit = Field(default=None, description="Most waiting jobs.")
    max_gpus: _Limit = Field(default=None, description="Most GPUs that its jobs use at once.")
    max_bytes: Annotated[int | None, Field(ge=1, le=projects.MAX_BYTES)] = Field(
        default=None, description="Bytes of stored files from which on submissions are refused."
    )

    @property
    def limits(self) -> dict[str, int | None]:
        """The limits that the request names."""
        return {name: getattr(self, name) for name in projects.LIMITS if name in self.model_fields_set}


class ProjectResponse(Response):
    """A project: its keys see what they submit, and nothing of other projects.  A limit of null is none.

    `warning` says after a change of limits what is beyond them now: running and waiting jobs stay.
    """

    id: str
    name: str
    max_waiting: int | None
    max_gpus: int | None
    max_bytes: int | None
    warning: str | None


class Projects(Response):
    """The projects that the key sees, by name: its own one, or all."""

    items: list[ProjectResponse]


@router.get("")
def list_projects(principal: Reader, database: TheDatabase) -> Projects:
    """List the projects that the key sees."""
    with database.read() as session:
        return Projects(items=[ProjectResponse.of(row, warning=None) for row in projects.every(session)])


@router.post("", status_code=201)
def create_project(body: ProjectName, principal: ServiceAdmin, database: TheDatabase) -> ProjectResponse:
    """Create a project; keys get into it by `project` of `POST /v1/keys` and `PATCH /v1/keys/{key_id}`."""
    return ProjectResponse.of(database.write(lambda session: projects.create(session, body.name)), warning=None)


@router.patch("/{project_id}")
def change_project(
    project_id: str, body: ProjectBody, principal: ServiceAdmin, database: TheDatabase
) -> ProjectResponse:
    """Rename a project, or change its limits, which hold at once; its keys and their jobs stay in it.

    A submission beyond a limit gets 429 (waiting jobs) or 409 (stored bytes).  A job that the GPUs of the project hold
    back waits with the cause `project_limit`.
    """
    row = database.write(lambda session: projects.change(session, project_id, body.name, body.limits))
    with database.read() as session:
        warning = limits.excess_of_project(session, project_id) if body.limits else None
    return ProjectResponse.of(row, warning=warning)


@router.delete("/{project_id}", status_code=204)
def remove_project(project_id: str, principal: ServiceAdmin, database: TheDatabase) -> None:
    """Remove a project.  One with keys or jobs is refused with 409, and `detail` counts them.

    Usage keeps its name, and `POST /v1/projects` with this name brings it back.
    """
    database.write(lambda session: projects.remove(session, project_id))
