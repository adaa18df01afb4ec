"""What there is to work with: datasets, presets, workers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from typing_extensions import TypedDict

from api import rendering
from api.auth import Reader
from api.rendering import DatasetAnswer, WorkerAnswer
from api.state import TheDatabase
from jobs import queries
from wcl_core.config import PretrainSpec, presets, resolve_spec

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
        return {"items": [rendering.dataset(row) for row in queries.datasets(session)]}


@router.get("/workers")
def workers(principal: Reader, database: TheDatabase) -> Workers:
    """Who runs jobs."""
    with database.read() as session:
        return {"items": [rendering.worker(row) for row in queries.workers(session)]}


@router.get("/presets")
def list_presets(principal: Reader) -> Presets:
    """Starting points for `preset` of a new job."""
    found = presets().items()
    return {
        "items": [
            {"name": name, "kind": "pretrain", "description": _description(spec), "spec": resolve_spec(spec)}
            for name, spec in found
        ]
    }


def _description(spec: PretrainSpec) -> str:
    data, backbone = spec.data, spec.backbone
    return (
        f"{spec.method} with a {backbone.name} backbone on {data.name} at {data.image_size} pixels, "
        f"{spec.epochs} epochs, batch {spec.batch_size}"
    )
