"""Datasets that workers have announced."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi import Response as HttpResponse
from pydantic import BaseModel, ConfigDict, Field

from api.http import files
from api.http.auth import Reader, ServiceAdmin, Submitter
from api.http.dependencies import TheDatabase
from api.rest import responses
from api.rest.responses import DatasetResponse, RefusedDataset, Response, TrainingTime
from jobs import dataset_sources, datasets, queries, recommendations
from jobs.datasets import sheet_layouts, sheet_png
from wcl_core.recommendation import Content

router = APIRouter(prefix="/v1/datasets", tags=["catalog"])


class NewDataset(BaseModel):
    """A dataset to add: its name, and the absolute path of its folder, list, archive or packed file on the workers.

    `labels`: whether folders, or the list, may name classes.
    """

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "flowers", "path": "/data/flowers"}]}
    )

    name: Annotated[str, Field(min_length=1, max_length=64)]
    path: Annotated[str, Field(min_length=1, max_length=dataset_sources.MAX_PATH)]
    labels: bool = True


class NewName(BaseModel):
    """The new name of a dataset."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "flowers-2026"}]})

    name: Annotated[str, Field(min_length=1, max_length=64)]


class AddedDataset(Response):
    """A dataset that was added or renamed; workers announce it within seconds.  No response holds its path."""

    name: str
    has_labels: bool


class ChoiceResponse(Response):
    """One field of a recipe by its dotted name, with its value and the reason for it."""

    field: str
    value: Any
    reason: str


class RecommendationResponse(Response):
    """A recipe: `spec` for a job, its fields with reasons, steps, seconds and bytes of memory by rules of thumb.

    `hope` is what one may expect of it, and `notes` are what to know before. `further_epochs` are those to continue for
    where the minutes are too short to learn; 0 where they are not. `time` and `warnings` are those of a dry run of the
    spec.
    """

    spec: dict[str, Any]
    choices: list[ChoiceResponse]
    steps: int
    seconds: float
    memory: int | None
    hope: str
    notes: list[str]
    further_epochs: int
    warnings: list[str]
    time: TrainingTime


class Datasets(Response):
    """By name; beside them those that live workers still read (`pending`) or refuse."""

    items: list[DatasetResponse]
    pending: list[str]
    refused: list[RefusedDataset]


@router.get("")
def list_datasets(principal: Reader, database: TheDatabase) -> Datasets:
    """List the datasets that workers have announced, and those that they still read or refuse."""
    with database.read() as session:
        sheets, states = sheet_layouts(session), datasets.states(session)
        unsettled = datasets.unsettled(session)
        return Datasets(
            items=[responses.dataset(row, sheets.get(row.name), states[row.name]) for row in queries.datasets(session)],
            pending=unsettled.pending,
            refused=[RefusedDataset.model_validate(each) for each in unsettled.refused],
        )


@router.post("", status_code=202)
def add(body: NewDataset, principal: ServiceAdmin, database: TheDatabase) -> AddedDataset:
    """Add a dataset, which every worker reads that has its path; the service remembers it."""
    arguments = (body.name, body.path, body.labels, principal.key_id)
    return AddedDataset.of(database.write(lambda session: dataset_sources.add(session, *arguments)))


@router.patch("/{name}")
def rename(name: str, body: NewName, principal: ServiceAdmin, database: TheDatabase) -> AddedDataset:
    """Rename a dataset that was added; jobs that have ended keep the old name."""
    return AddedDataset.of(database.write(lambda session: dataset_sources.rename(session, name, body.name)))


@router.delete("/{name}", status_code=204)
def remove(name: str, principal: ServiceAdmin, database: TheDatabase) -> None:
    """Remove a dataset that was added; its files stay."""
    database.write(lambda session: dataset_sources.remove(session, name))


@router.get("/{name}/recommendation")
def recommendation(
    name: str,
    principal: Reader,
    database: TheDatabase,
    minutes: Annotated[float | None, Query(gt=0, le=1e6, description="Time that the training may take.")] = None,
    content: Content = "photos",
    pool: Annotated[str, Query(max_length=64)] = "default",
) -> RecommendationResponse:
    """Propose a spec that fits a dataset and the workers of a pool, each field with its reason.

    `photos`; `drawings`, also digits and text, which may not be mirrored; `overhead`: microscopy and satellite images.
    The time follows from the speed of earlier jobs; without one, it is a rule of thumb.
    """
    with database.read() as session:
        return RecommendationResponse.of(recommendations.recommended(session, name, minutes, content, pool))


@router.get("/{name}")
def show(name: str, principal: Reader, database: TheDatabase) -> DatasetResponse:
    """Return one dataset."""
    with database.read() as session:
        row = queries.get_dataset(session, name)
        return responses.dataset(row, sheet_layouts(session).get(name), datasets.states(session)[name])


@router.post("/{name}/read", status_code=202)
def read_again(name: str, principal: Submitter, database: TheDatabase) -> DatasetResponse:
    """Request that the workers read a folder again; files that have not changed are not read."""
    database.write(lambda session: datasets.read_again(session, name))
    return show(name, principal, database)


@router.get("/{name}/samples.png", response_class=HttpResponse, responses={200: {"content": {"image/png": {}}}})
def sample_images(request: Request, name: str, principal: Reader, database: TheDatabase) -> HttpResponse:
    """Return one picture with some images of each class; its ETag is its sha256."""
    with database.read() as session:
        png, sha256 = sheet_png(session, name)
    return files.content(request, png, f'"{sha256}"', "image/png")
