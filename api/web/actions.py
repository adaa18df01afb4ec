"""What the buttons of the pages do where no script runs; the gate has compared the Origin.

With scripts the same forms go to the REST interface (`static/js/actions.js`), and the page stays.
"""

from __future__ import annotations

from contextlib import suppress
from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Form
from fastapi.responses import RedirectResponse, Response

from api.http.auth import Submitter
from api.http.dependencies import TheDatabase
from api.rest.evaluations import EvaluateBody, new_evaluation, pointing_into_body
from jobs import checkpoints, submission, transitions
from jobs.database import Database
from jobs.errors import Conflict
from wcl_core.config import Protocol

router = APIRouter(include_in_schema=False)


class Verb(StrEnum):
    """What a person may ask of a job."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"


class Pin(StrEnum):
    """What a person may ask of a checkpoint."""

    PIN = "pin"
    UNPIN = "unpin"


@router.post("/jobs/{job_id}/evaluate")
def evaluate(
    job_id: str,
    submitter: Submitter,
    database: TheDatabase,
    checkpoint_id: Annotated[str, Form()],
    protocols: Annotated[list[Protocol], Form()] = [],  # noqa: B006 (FastAPI copies it)
) -> Response:
    """Measure one of the job's checkpoints; the page of the new job."""
    body = EvaluateBody(protocols=tuple(protocols)) if protocols else EvaluateBody()
    with pointing_into_body():
        made = database.write(
            lambda session: submission.submit(session, new_evaluation(session, checkpoint_id, body, submitter.key_id))
        )
    return _see(f"/jobs/{made.id}")


@router.post("/jobs/cancel")
def cancel_all(
    submitter: Submitter,
    database: TheDatabase,
    job: Annotated[list[str], Form(max_length=100)] = [],  # noqa: B006
) -> Response:
    """Cancel those that have not ended yet; back to the list."""
    for job_id in job:
        with suppress(Conflict):
            _asked(database, job_id, Verb.CANCEL, submitter.key_id)
    return _see("/")


@router.post("/jobs/{job_id}/{verb}")
def act(job_id: str, verb: Verb, submitter: Submitter, database: TheDatabase) -> Response:
    """Ask it of the job; the page of the job, or of the new one."""
    return _see(f"/jobs/{_asked(database, job_id, verb, submitter.key_id)}")


def _asked(database: Database, job_id: str, verb: Verb, asker: str) -> str:
    if verb is Verb.RETRY:
        return database.write(lambda session: submission.retry(session, job_id, asker)).id
    change = getattr(transitions, verb)
    database.write(lambda session: change(session, job_id))
    return job_id


@router.post("/checkpoints/{checkpoint_id}/{pin}")
def pin(checkpoint_id: str, pin: Pin, submitter: Submitter, database: TheDatabase) -> Response:
    """Pin or unpin; back to the checkpoints of its job."""
    checkpoint = database.write(lambda session: checkpoints.pin(session, checkpoint_id, pin is Pin.PIN))
    return _see(f"/jobs/{checkpoint.job_id}#checkpoints")


def _see(address: str) -> Response:
    return RedirectResponse(address, status_code=303)
