"""What a person means by a short word for a job, a sweep or a worker."""

from __future__ import annotations

from wcl_client.api import WclClient
from wcl_client.errors import InvalidError, NotFoundError
from wcl_client.responses import Job, Json

_EXPECTED_JOB = "expected an id, four or more characters that one id begins or ends with, or `last`"


def find_job(client: WclClient, reference: str) -> Job:
    """The job that an id, a part of one, or `last` means."""
    if len(reference) == 36:
        return client.job(reference)
    newest = client.jobs(limit=1 if reference == "last" else 200)
    found = newest if reference == "last" else [job for job in newest if _matches(job["id"], reference)]
    if len(found) == 1:
        return client.job(found[0]["id"])
    if not found:
        raise NotFoundError(404, "Not found", f"no job matches {reference}; {_EXPECTED_JOB}")
    raise InvalidError(400, "Ambiguous", f"{reference} matches {len(found)} jobs; {_EXPECTED_JOB}")


def find_worker(client: WclClient, reference: str) -> Json:
    """The worker that a name, an id or a part of one means; of several with one name the one that runs."""
    workers = client.workers()
    running = [worker for worker in workers if worker["is_live"]]
    for among in (running, workers):
        found = [worker for worker in among if worker["name"] == reference or _matches(worker["id"], reference)]
        if len(found) == 1:
            return found[0]
        if found:
            raise InvalidError(400, "Ambiguous", f"{reference} matches {len(found)} workers; name one by its id")
    raise NotFoundError(404, "Not found", f"no worker matches {reference}")


def find_sweep(client: WclClient, reference: str) -> Json:
    """The sweep that an id, a part of one, or `last` means."""
    if len(reference) == 36:
        return client.sweep(reference)
    newest = client.sweeps(limit=1 if reference == "last" else 200)
    found = newest if reference == "last" else [sweep for sweep in newest if _matches(sweep["id"], reference)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise NotFoundError(404, "Not found", f"no sweep matches {reference}; {_EXPECTED_JOB}")
    raise InvalidError(400, "Ambiguous", f"{reference} matches {len(found)} sweeps; {_EXPECTED_JOB}")


def _matches(identifier: str, part: str) -> bool:
    return len(part) >= 4 and (identifier.startswith(part) or identifier.endswith(part))
