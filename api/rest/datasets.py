"""What there is to work with: datasets, presets, workers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from typing_extensions import TypedDict

from api.http import files
from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.rest import rendering
from api.rest.responses import DatasetAnswer, WorkerAnswer
from jobs import queries
from jobs.datasets import sheet_layouts, sheet_png
from wcl_core.config import resolve_spec
from wcl_core.presets import described_presets

router = APIRouter(prefix="/v1", tags=["catalog"])


class Datasets(TypedDict):
    """By name."""

    items: list[DatasetAnswer]


class Workers(TypedDict):
    """Those that run first, then newest first."""

    items: list[WorkerAnswer]


class PresetAnswer(TypedDict):
    """A complete spec to start from."""

    name: str
    kind: str
    description: str
    spec: dict[str, Any]


class Presets(TypedDict):
    """The small ones first."""

    items: list[PresetAnswer]


@router.get("/datasets")
def datasets(principal: Reader, database: TheDatabase) -> Datasets:
    """What workers have announced."""
    with database.read() as session:
        sheets = sheet_layouts(session)
        return {"items": [rendering.dataset(row, sheets.get(row.name)) for row in queries.datasets(session)]}


@router.get("/datasets/{name}")
def dataset(name: str, principal: Reader, database: TheDatabase) -> DatasetAnswer:
    """One of them."""
    with database.read() as session:
        return rendering.dataset(queries.get_dataset(session, name), sheet_layouts(session).get(name))


@router.get("/datasets/{name}/samples.png", response_class=Response, responses={200: {"content": {"image/png": {}}}})
def sample_images(request: Request, name: str, principal: Reader, database: TheDatabase) -> Response:
    """Some images of each class as one picture; its ETag is its sha256."""
    with database.read() as session:
        png, sha256 = sheet_png(session, name)
    return files.content(request, png, f'"{sha256}"', "image/png")


@router.get("/workers")
def workers(principal: Reader, database: TheDatabase) -> Workers:
    """Who runs jobs."""
    with database.read() as session:
        return {"items": [rendering.worker(row) for row in queries.workers(session)]}


@router.get("/presets")
def list_presets(principal: Reader) -> Presets:
    """Starting points for `preset` of a new job."""
    found = described_presets().items()
    return {
        "items": [
            {"name": name, "kind": "pretrain", "description": preset.description, "spec": resolve_spec(preset.spec)}
            for name, preset in found
        ]
    }
