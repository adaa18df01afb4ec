"""Checkpoints: show, pin, evaluate, delete, download, verify."""

from __future__ import annotations

import logging
from functools import partial
from typing import Literal

import anyio.from_thread
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, StrictBool

from api.http import files
from api.http.auth import Owner, Reader, Submitter
from api.http.dependencies import HeavySlot, TheDatabase, TheSettings, TheStorage
from api.http.idempotency import REPLAYED, TheSubmission
from api.http.problems import Gone, Unready
from api.rest import exports, responses
from api.rest.evaluations import EvaluateBody, create_evaluation
from api.rest.responses import CheckpointResponse, JobResponse
from api.rest.stored_files import open_checkpoint
from jobs import checkpoints, damage, queries
from jobs.errors import FieldError, Invalid
from jobs.models import TRAINING
from jobs.storage import StorageUnavailable
from wcl_core.export import ExportError

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/checkpoints/{checkpoint_id}", tags=["checkpoints"])

FileKind = Literal["native", "backbone"]


class CheckpointChange(BaseModel):
    """Changes of a checkpoint; a pinned checkpoint cannot be deleted."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"pinned": True}]})

    pinned: StrictBool


@router.get("")
def show(checkpoint_id: str, principal: Reader, database: TheDatabase) -> CheckpointResponse:
    """Return one registered checkpoint."""
    with database.read() as session:
        return responses.checkpoint(queries.get_checkpoint(session, checkpoint_id))


@router.patch("")
def change(checkpoint_id: str, body: CheckpointChange, principal: Owner, database: TheDatabase) -> CheckpointResponse:
    """Pin or unpin a checkpoint."""
    return responses.checkpoint(database.write(lambda session: checkpoints.pin(session, checkpoint_id, body.pinned)))


@router.post("/evaluate", status_code=201, responses=REPLAYED)
def evaluate(
    checkpoint_id: str,
    body: EvaluateBody,
    principal: Submitter,
    database: TheDatabase,
    submission: TheSubmission,
    response: Response,
) -> JobResponse:
    """Create a job that evaluates a checkpoint; the body is an EvaluateSpec without `features`."""
    job = create_evaluation(submission, checkpoint_id, body)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    with database.read() as session:
        return responses.job(session, job, queries.tags(session, [job.id])[job.id])


@router.delete("", status_code=204)
def delete(
    checkpoint_id: str, principal: Owner, database: TheDatabase, settings: TheSettings, storage: TheStorage
) -> None:
    """Delete a checkpoint and its file; refused while it is pinned, or while an unfinished job needs it."""
    gone = database.write(lambda session: checkpoints.delete(session, checkpoint_id))
    try:
        storage.delete(gone.storage_key)
        exports.sweep(database, settings.exports_dir)
    except OSError as error:  # the file can no longer be downloaded; only its space is not free yet
        log.warning("the file of checkpoint %s cannot be removed: %s", checkpoint_id, error)


@router.head("/download", include_in_schema=False)
@router.get("/download", response_class=Response)
def download(
    checkpoint_id: str,
    request: Request,
    principal: Reader,
    database: TheDatabase,
    settings: TheSettings,
    storage: TheStorage,
    slot: HeavySlot,
    kind: FileKind = "native",
) -> Response:
    """Return a checkpoint's file: `native` with all states, or `backbone` with the weights under torchvision's names.

    The ETag is the sha256 of the bytes.  The server supports one range, If-Range, If-None-Match and HEAD.  With
    `WCL_STORAGE_DOWNLOADS=redirect` a GET of a native file is answered with a signed address of the bucket (307).
    """
    with database.read() as session:
        checkpoint = queries.get_checkpoint(session, checkpoint_id)
    native, sha256 = open_checkpoint(database, storage, checkpoint), checkpoint.sha256
    if kind == "native":
        name = f"{checkpoint.id}-native.safetensors"
        redirects = settings.storage_downloads == "redirect"
        link = partial(storage.link, checkpoint.storage_key, name) if redirects else lambda: None
        return files.respond(request, native, f'"{sha256}"', name, link=link)
    with native:
        if checkpoint.kind != TRAINING:
            raise Invalid([FieldError("kind", f"a file of {checkpoint.kind} has no backbone; expected native")])
        try:
            backbone, sha256 = exports.backbone(settings.exports_dir, native, sha256, partial(_check_client, request))
        except ExportError as error:
            raise Gone(f"checkpoint {checkpoint.id} has no backbone: {error}") from error
    return files.respond(request, backbone, f'"{sha256}"', backbone_name(checkpoint.id))


def backbone_name(checkpoint_id: str) -> str:
    """Return the name under which browsers store the weights of a checkpoint."""
    return f"{checkpoint_id}-backbone.safetensors"


def _check_client(request: Request) -> None:
    """Raise if the client has closed the connection; for threads that serve a request."""
    if anyio.from_thread.run(request.is_disconnected):
        raise Unready("the client has closed the connection")


@router.post("/verify")
def verify(
    checkpoint_id: str, principal: Submitter, database: TheDatabase, storage: TheStorage, slot: HeavySlot
) -> CheckpointResponse:
    """Read the whole file of a checkpoint, and return the checkpoint with the result.

    Other bytes than the registered ones set `damaged_at`, and a missing file sets `missing_at`; a file that is as
    registered again takes the mark back.  If none of the job's files is there, the response is 503 and no mark is set.
    """
    with database.read() as session:
        queries.get_checkpoint(session, checkpoint_id)
    try:
        damage.verify(database, storage, checkpoint_id)
    except StorageUnavailable as error:
        raise Unready(str(error)) from error
    with database.read() as session:
        return responses.checkpoint(queries.get_checkpoint(session, checkpoint_id))
