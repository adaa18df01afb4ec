"""The buttons of the pages in browsers without scripts.  The middleware has compared the Origin header.

In browsers with scripts, `static/js/actions.js` sends the same forms to the REST interface without a reload.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Form
from fastapi.responses import RedirectResponse, Response

from api.http.auth import Owner, ServiceAdmin, Submitter
from api.http.dependencies import TheDatabase, TheSettings
from api.http.idempotency import TheFormSubmission
from api.rest.datasets import NewDataset
from api.rest.evaluations import EvaluateBody, create_baselines, create_evaluation
from api.rest.job_bodies import CloneBody, ContinueBody, JobChange, create_clone, create_continued, create_retry
from api.web.forms.fields import body_of
from jobs import checkpoints, dataset_sources, datasets, queries, references, transitions
from jobs import submission as service
from jobs.errors import Conflict, FieldError, Invalid
from jobs.verdicts import its_twin
from wcl_core.config import Protocol
from wcl_core.text import twin_name

router = APIRouter(include_in_schema=False)


class Verb(StrEnum):
    """Changes of a job that a user may request."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    ARCHIVE = "archive"
    UNARCHIVE = "unarchive"
    STAR = "star"
    UNSTAR = "unstar"


class Pin(StrEnum):
    """Changes of a checkpoint that a user may request."""

    PIN = "pin"
    UNPIN = "unpin"


@router.post("/jobs/{job_id}/evaluate")
def evaluate(
    job_id: str,
    submitter: Submitter,
    submission: TheFormSubmission,
    checkpoint_id: Annotated[str, Form()],
    protocols: Annotated[list[Protocol], Form()] = [],  # noqa: B006 (FastAPI copies it)
) -> Response:
    """Evaluate one of the job's checkpoints; redirect to the page of the new job."""
    body = body_of(EvaluateBody, {"protocols": protocols} if protocols else {})
    return _see(f"/jobs/{create_evaluation(submission, checkpoint_id, body).id}")


@router.post("/jobs/{job_id}/baselines")
def baselines(job_id: str, submitter: Submitter, submission: TheFormSubmission) -> Response:
    """Measure the raw pixels and the untrained network as the newest evaluation; redirect to the job's page.

    A training that has no evaluation yet gets one, too.
    """
    create_baselines(submission, job_id, with_evaluation=True)
    return _see(f"/jobs/{job_id}#evaluations")


@router.post("/jobs/{job_id}/retry")
def retry(job_id: str, submitter: Submitter, submission: TheFormSubmission) -> Response:
    """Retry the job; redirect to the page of the new job."""
    return _see(f"/jobs/{create_retry(submission, job_id).id}")


@router.post("/jobs/{job_id}/continue")
def go_on(
    job_id: str,
    submitter: Submitter,
    submission: TheFormSubmission,
    epochs: Annotated[str, Form()] = "",
) -> Response:
    """Train the finished job for more epochs; redirect to the page of the new job."""
    body = body_of(ContinueBody, {"epochs": epochs.strip()})
    return _see(f"/jobs/{create_continued(submission, job_id, body).id}")


@router.post("/jobs/{job_id}/twin")
def train_twin(job_id: str, submitter: Submitter, database: TheDatabase, submission: TheFormSubmission) -> Response:
    """Train the twin of a training; redirect to its page, or to that of the one that there is already."""
    with database.read() as session:
        job = queries.get_job(session, job_id)
        if (twin := its_twin(session, job)) is None:
            raise Conflict("only a training has a twin, and this job is an evaluation or a trial of a sweep")
        if twin.job is not None:
            return _see(f"/jobs/{twin.job.id}")
        method = twin.method
        name = service.free_name(session, service.shortened(twin_name(job.name, method), ""))
    body = CloneBody(spec={"method": method}, name=name)
    return _see(f"/jobs/{create_clone(submission, job_id, body).id}")


@router.post("/jobs/{job_id}/note")
def write_note(job_id: str, submitter: Owner, database: TheDatabase, note: Annotated[str, Form()] = "") -> Response:
    """Set the note of the job, or remove it if the text is empty; redirect to its page."""
    body = body_of(JobChange, {"note": note})
    database.write(lambda session: service.change(session, job_id, note=body.note))
    return _see(f"/jobs/{job_id}#note")


@router.post("/jobs/{job_id}/reference")
def set_reference(job_id: str, submitter: Submitter, database: TheDatabase) -> Response:
    """Make the training the reference of its dataset; redirect to its page."""
    database.write(lambda session: references.set_reference(session, job_id, True))
    return _see(f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/unreference")
def unset_reference(job_id: str, submitter: Submitter, database: TheDatabase) -> Response:
    """Make the training no reference any more; redirect to its page."""
    database.write(lambda session: references.set_reference(session, job_id, False))
    return _see(f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/{verb}")
def act(job_id: str, verb: Verb, submitter: Owner, database: TheDatabase) -> Response:
    """Carry out a request for the job; redirect to its page."""
    if verb in (Verb.STAR, Verb.UNSTAR):
        database.write(lambda session: service.change(session, job_id, starred=verb is Verb.STAR))
    else:
        change = getattr(service if verb in (Verb.ARCHIVE, Verb.UNARCHIVE) else transitions, verb)
        database.write(lambda session: change(session, job_id))
    return _see(f"/jobs/{job_id}")


@router.post("/checkpoints/{checkpoint_id}/{pin}")
def pin(checkpoint_id: str, pin: Pin, submitter: Owner, database: TheDatabase) -> Response:
    """Pin or unpin the checkpoint; redirect to the checkpoints of its job."""
    checkpoint = database.write(lambda session: checkpoints.pin(session, checkpoint_id, pin is Pin.PIN))
    return _see(f"/jobs/{checkpoint.job_id}#checkpoints")


@router.post("/datasets")
def add_dataset(
    admin: ServiceAdmin,
    database: TheDatabase,
    settings: TheSettings,
    name: Annotated[str, Form()] = "",
    path: Annotated[str, Form()] = "",
    labels: Annotated[bool, Form()] = False,
) -> Response:
    """Add a dataset at a path of this machine; redirect to the list."""
    body = body_of(NewDataset, {"name": name.strip(), "path": path.strip(), "labels": labels})
    is_below = dataset_sources.is_below(Path(body.path), settings.dataset_roots)
    if not is_below or not os.access(body.path, os.R_OK):  # one text, which does not tell what is elsewhere
        detail = "there is nothing at this path that the server may read (WCL_DATASET_ROOTS); use `wcl dataset add` "
        raise Invalid([FieldError("/path", detail + "for a path of a worker")])
    database.write(lambda session: dataset_sources.add(session, body.name, body.path, body.labels, admin.key_id))
    return _see("/datasets")


@router.post("/datasets/{name}/remove")
def remove_dataset(name: str, admin: ServiceAdmin, database: TheDatabase) -> Response:
    """Remove a dataset that was added; its files stay; redirect to the list."""
    database.write(lambda session: dataset_sources.remove(session, name))
    return _see("/datasets")


@router.post("/datasets/{name}/read")
def read_again(name: str, submitter: Submitter, database: TheDatabase) -> Response:
    """Request that the workers read a folder again; redirect to its page."""
    database.write(lambda session: datasets.read_again(session, name))
    return _see(f"/datasets/{quote(name, safe='')}")


def _see(address: str) -> Response:
    return RedirectResponse(address, status_code=303)
