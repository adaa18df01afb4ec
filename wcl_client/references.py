"""Lookup of a job, sweep, checkpoint or worker by a short reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wcl_client.api import WclClient
from wcl_client.errors import InvalidError, NotFoundError
from wcl_client.responses import Job, Json, Worker

_ID_LENGTH = 36
_EXPECTED = "expected an id, four or more characters at the beginning or the end of an id, or `last`"


def find_job(client: WclClient, reference: str) -> Job:
    """Return the job of an id, of a part of an id, or of `last`.

    Raises:
        NotFoundError: no job matches.
        InvalidError: several jobs match.
    """
    if len(reference) == _ID_LENGTH:
        return client.job(reference)
    jobs = client.jobs(limit=1 if reference == "last" else 200)
    return client.job(_match(jobs, reference, "job")["id"])  # a list omits the spec


def find_sweep(client: WclClient, reference: str) -> Json:
    """Return the sweep of an id, of a part of an id, or of `last`; raise as `find_job`."""
    if len(reference) == _ID_LENGTH:
        return client.sweep(reference)
    sweeps = client.sweeps(limit=1 if reference == "last" else 200)
    return client.sweep(_match(sweeps, reference, "sweep")["id"])  # a list omits the trials


def find_checkpoint(client: WclClient, reference: str, choice: str | None = None) -> str:
    """Return the id of a checkpoint; a job stands for its last checkpoint, or for the chosen one.

    Args:
        client: of the service.
        reference: a checkpoint's id, or a job as in `find_job`.
        choice: of a job's checkpoints: a step, an id, or a part of an id.

    Raises:
        NotFoundError: no job and no checkpoint matches, or the job has no such checkpoint.
        InvalidError: several jobs match.
    """
    try:
        job = find_job(client, reference)
    except NotFoundError:
        if len(reference) != _ID_LENGTH:
            raise
        return client.checkpoint(reference)["id"]
    checkpoints = client.checkpoints(job["id"])
    if not checkpoints:
        raise NotFoundError(404, "Not found", f"job {job['id']} has no checkpoint yet")
    if choice is None:
        return checkpoints[-1]["id"]
    for each in checkpoints:
        if str(each["step"]) == choice or _matches(each["id"], choice):
            return each["id"]
    steps = ", ".join(str(each["step"]) for each in checkpoints)
    raise NotFoundError(404, "Not found", f"job {job['id']} has no checkpoint {choice}; it has those of steps {steps}")


def find_worker(client: WclClient, reference: str) -> Worker:
    """Return the worker of a name, an id, or a part of an id; a live worker comes before one that is gone.

    Raises:
        NotFoundError: no worker matches.
        InvalidError: several workers match.
    """
    workers = client.workers()
    matches = [worker for worker in workers if worker["name"] == reference or _matches(worker["id"], reference)]
    matches = [worker for worker in matches if worker["is_live"]] or matches
    if not matches:
        raise NotFoundError(404, "Not found", f"no worker matches {reference}; `wcl worker list` lists them")
    if len(matches) > 1:
        raise InvalidError(
            400, "Ambiguous", f"{reference} matches {len(matches)} workers; use an id of `wcl worker list`"
        )
    return matches[0]


def _match(items: Sequence[Any], reference: str, noun: str) -> Any:
    """Return the only item that a reference matches, as `find_job` does."""
    matches = [item for item in items if reference == "last" or _matches(item["id"], reference)]
    if not matches:
        raise NotFoundError(404, "Not found", f"no {noun} matches {reference}; {_EXPECTED}")
    if len(matches) > 1:
        raise InvalidError(400, "Ambiguous", f"{reference} matches {len(matches)} {noun}s; {_EXPECTED}")
    return matches[0]


def _matches(identifier: str, part: str) -> bool:
    return len(part) >= 4 and (identifier.startswith(part) or identifier.endswith(part))
