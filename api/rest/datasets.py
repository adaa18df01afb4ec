"""Datasets that workers have announced."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi import Response as HttpResponse

from api.http import files
from api.http.auth import Reader, Submitter
from api.http.dependencies import TheDatabase
from api.rest import responses
from api.rest.responses import DatasetResponse, RefusedDataset, Response
from jobs import datasets, queries
from jobs.datasets import sheet_layouts, sheet_png

router = APIRouter(prefix="/v1/datasets", tags=["catalog"])


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
