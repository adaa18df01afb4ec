"""Imported weights that trainings start from: add, list, show, verify, remove."""

from __future__ import annotations

import tempfile
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi import Response as HttpResponse

from api.http.auth import Owner, Reader, Submitter
from api.http.dependencies import HeavySlot, TheDatabase, TheSettings, TheStorage
from api.http.problems import Unready
from api.http.uploads import BODY, TheUpload
from api.rest.responses import Response, Time
from jobs import weights
from jobs.errors import FieldError, Invalid
from jobs.storage import StorageUnavailable, is_full
from wcl_core.weight_file import MAX_BYTES, WeightFileError, check_weight_file

router = APIRouter(prefix="/v1/weights", tags=["weights"])

_Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the file's bytes, in hex digits.")]
_Name = Annotated[str, Query(pattern=weights.NAME, description="Name for people; the spec has the digest.")]


class WeightsResponse(Response):
    """Imported weights.

    `backbone` is the part of a spec that names their network, and `image_size` the side of the images that it was
    trained on.  `report` has the numbers of tensors that were taken (`matched`), set to 0 (`filled`) and left
    (`unused`, with the first `unused_names`), and the `prefix` of their names in the imported file.
    """

    sha256: str
    name: str
    size: int
    backbone: dict[str, Any]
    image_size: int
    report: dict[str, Any]
    created_by: str | None
    created_at: Time


class VerifiedWeights(WeightsResponse):
    """Imported weights whose whole file was read; `flaw` says what is wrong with it, and is null if nothing is."""

    flaw: str | None


class WeightsList(Response):
    """By name."""

    items: list[WeightsResponse]


@router.get("")
def list_weights(principal: Reader, database: TheDatabase) -> WeightsList:
    """List the imported weights."""
    with database.read() as session:
        return WeightsList(items=[WeightsResponse.of(row) for row in weights.every(session)])


@router.get("/{sha256}")
def show(sha256: _Digest, principal: Reader, database: TheDatabase) -> WeightsResponse:
    """Return imported weights."""
    with database.read() as session:
        return WeightsResponse.of(weights.get(session, sha256))


@router.put(
    "/{sha256}",
    status_code=201,
    openapi_extra={"requestBody": BODY},
    responses={200: {"description": "The file is there already; the name is that of its first import."}},
)
def add(
    sha256: _Digest,
    name: _Name,
    principal: Submitter,
    database: TheDatabase,
    settings: TheSettings,
    storage: TheStorage,
    upload: TheUpload,
    response: HttpResponse,
) -> WeightsResponse:
    """Add weights: a file of `python -m wcl_core import-weights`, of at most 2 GiB, as the body.

    The server compares its digest, and each tensor's name, type and shape with the network that the file names.
    """
    weights.check_format(name)
    try:
        folder = settings.exports_dir
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:  # without a name, so that a crash leaves nothing
            digest = upload.copy_to(file, MAX_BYTES)
            if digest != sha256:
                raise Invalid([FieldError("sha256", f"the body has the digest {digest}; send the file again")])
            size = file.tell()
            facts = check_weight_file(file)
            fields = {"sha256": sha256, "name": name, "size": size, "created_by": principal.key_id}
            fields |= {"backbone": facts.backbone.model_dump(mode="json"), "image_size": facts.data.image_size}
            fields |= {"report": facts.report.model_dump(mode="json")}
            row, is_new = weights.store(database, storage, file, fields)
    except WeightFileError as error:
        raise Invalid([FieldError("", f"this file cannot be taken: {error}")]) from error
    except StorageUnavailable as error:
        raise Unready(str(error)) from error
    except OSError as error:
        advice = "free space in" if is_full(error) else "check"
        reason = error.strerror or type(error).__name__
        detail = f"the server cannot store the file: {reason}; {advice} its data folder, then import again"
        raise Unready(detail) from error
    response.status_code = 201 if is_new else 200
    return WeightsResponse.of(row)


@router.post("/{sha256}/verify")
def verify(
    sha256: _Digest, principal: Submitter, database: TheDatabase, storage: TheStorage, slot: HeavySlot
) -> VerifiedWeights:
    """Read the whole file of imported weights, and return them with what is wrong with it."""
    with database.read() as session:
        row = weights.get(session, sha256)
    try:
        flaw = weights.flaw(storage, row)
    except StorageUnavailable as error:
        raise Unready(str(error)) from error
    return VerifiedWeights.of(row, flaw=None if flaw is None else str(flaw))


@router.delete("/{sha256}", status_code=204)
def remove(sha256: _Digest, principal: Owner, database: TheDatabase, storage: TheStorage) -> None:
    """Remove imported weights and their file; refused while an unfinished job needs them."""
    weights.remove(database, storage, sha256)
