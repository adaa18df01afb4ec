"""Small files that a run made to be looked at, such as the images of its probe."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from typing_extensions import TypedDict

from api.http import files
from api.http.auth import Reader
from api.http.dependencies import TheDatabase, TheStorage
from api.http.problems import Gone
from api.rest import rendering
from api.rest.responses import ArtifactAnswer
from jobs import queries
from wcl_core.protocol import ARTIFACT_NAME

router = APIRouter(prefix="/v1/jobs/{job_id}/artifacts", tags=["jobs"])

_Name = Annotated[str, Path(pattern=ARTIFACT_NAME)]


class Artifacts(TypedDict):
    """By name."""

    items: list[ArtifactAnswer]


@router.get("")
def artifacts(job_id: str, principal: Reader, database: TheDatabase) -> Artifacts:
    """Its small files, by name; of one that several attempts made, the newest attempt's."""
    with database.read() as session:
        queries.get_job(session, job_id)
        return {"items": [rendering.artifact(row) for row in queries.artifacts(session, job_id)]}


@router.head("/{name}", include_in_schema=False)
@router.get("/{name}", response_class=Response)
def artifact(
    job_id: str, name: _Name, request: Request, principal: Reader, database: TheDatabase, storage: TheStorage
) -> Response:
    """One of them, `image/png` or `application/json`; the ETag is the sha256 of the bytes."""
    with database.read() as session:
        found = queries.get_artifact(session, job_id, name)
    try:
        path = storage.path(found.storage_key)
        return files.answer(request, path, f'"{found.sha256}"', f"{found.job_id}-{found.name}", found.media_type)
    except FileNotFoundError as error:
        raise Gone(f"artifact {name} of job {job_id} is registered, but its file is missing on the server") from error
