"""The page of one dataset: its classes with samples, the newest jobs on it, and the workers that have it."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.web.datasets import DatasetView, dataset_view
from api.web.job_view import JobView
from api.web.render import page
from jobs import datasets, queries
from jobs.database import database_time
from jobs.listing import knn_accuracies
from jobs.models import Evaluation, Job
from jobs.status import Status
from jobs.verdicts import before_training

router = APIRouter(include_in_schema=False)

NEWEST_JOBS = 12


@dataclass(frozen=True)
class DatasetPage:
    """A dataset, the newest jobs on any of its versions, and whether this version has evaluations.

    Attributes:
        before_training: about an accuracy that is still that of the untrained network, by job.
        knn: the kNN accuracy that an evaluation job has measured, by job.
        preparing: running jobs that decode the folder.
    """

    view: DatasetView
    runs: list[JobView]
    before_training: dict[str, str]
    knn: dict[str, float]
    preparing: list[JobView]
    is_measured: bool
    now: int


def dataset_page(session: Session, name: str) -> DatasetPage:
    """Return a dataset for its page.

    Raises:
        NotFound: no dataset of this name is registered.
    """
    row = queries.get_dataset(session, name)
    workers = queries.workers(session, alive_only=True)
    newest = select(Job).where(Job.dataset_name == name).order_by(Job.id.desc()).limit(NEWEST_JOBS)
    jobs = session.execute(newest).scalars().all()
    running = [JobView(job, []) for job in session.execute(newest.where(Job.status == Status.RUNNING)).scalars()]
    measured = select(Evaluation.id).where(Evaluation.dataset_digest == row.digest).limit(1)
    return DatasetPage(
        dataset_view(row, datasets.states(session)[name], datasets.sheet_layouts(session).get(name), workers),
        [JobView(job, []) for job in jobs],
        before_training(session, jobs),
        knn_accuracies(session, jobs),
        [run for run in running if run.progress["phase"] == "prepare" and run.progress["share"] is not None],
        session.execute(measured).first() is not None,
        database_time(session),
    )


@router.get("/datasets/{name}")
def dataset_route(request: Request, name: str, reader: Reader, database: TheDatabase) -> Response:
    """Return the page of a dataset."""
    with database.read() as session:
        view = dataset_page(session, name)
    return page(request, "dataset.html", details=view, now=view.now, may_submit="submit" in reader.scopes)
