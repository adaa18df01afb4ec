"""Lookup of a job, sweep, checkpoint, worker or imported weights by a short reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wcl_client.api import WclClient
from wcl_client.errors import InvalidError, NotFoundError
from wcl_client.output import age
from wcl_client.responses import Job, JobKind, Json, Key, Webhook, Weights, Worker

_ID_LENGTH = 36
_ID = re.compile("[0-9a-f-]{4,36}")
_DIGEST = re.compile("[0-9a-f]{64}")
_EXPECTED = "expected an id, four or more characters at the beginning or the end of an id, {}or `last`"
_MOST_SIMILAR = 200  # jobs whose id or name has the reference in it
_MOST_LISTED = 8


def find_job(client: WclClient, reference: str, kind: JobKind | None = None) -> Job:
    """Return the job of an id, of a part of an id, of a name, or of `last`, which is never an archived job.

    Args:
        client: of the service.
        reference: as the user has written it.
        kind: of the job that `last` means; also of a name, if a job of this kind has it.

    Raises:
        NotFoundError: no job matches.
        InvalidError: several jobs match; the message lists them.
    """
    if len(reference) == _ID_LENGTH and _ID.fullmatch(reference):
        return client.job(reference)
    if reference == "last":
        jobs = client.jobs(kind=kind, limit=1)
    else:
        similar = client.jobs(archived="all", q=reference, limit=_MOST_SIMILAR)
        jobs = [job for job in similar if _ID.fullmatch(reference) and _matches(job["id"], reference)]
        named = [job for job in similar if job.get("name") == reference]
        named = [job for job in named if job["kind"] == kind] or named
        jobs = list({job["id"]: job for job in (*jobs, *named)}.values())
    expected = _EXPECTED.format("the name of one job, ")
    if not jobs:
        what = f"there is no {'training' if kind == 'pretrain' else 'job'} yet"
        raise NotFoundError(
            404, "Not found", what if reference == "last" else f"no job matches {reference}; {expected}"
        )
    if len(jobs) > 1:
        raise InvalidError(400, "Ambiguous", f"{reference} matches {_listed(jobs)}; {expected}")
    return client.job(jobs[0]["id"])  # a list omits the spec


def _listed(jobs: Sequence[Job]) -> str:
    """Return the number of jobs, and the newest ones with what tells them apart."""
    each = [f"{job['id'][-12:]} ({job['kind']}, {job['status']}, {age(job['created_at'])} old)" for job in jobs]
    more = f" and {len(jobs) - _MOST_LISTED} more" if len(jobs) > _MOST_LISTED else ""
    return f"{len(jobs)} jobs: {', '.join(each[:_MOST_LISTED])}{more}"


def find_sweep(client: WclClient, reference: str) -> Json:
    """Return the sweep of an id, of a part of an id, or of `last`; raise as `find_job`."""
    if len(reference) == _ID_LENGTH:
        return client.sweep(reference)
    sweeps = client.sweeps(limit=1 if reference == "last" else 200)
    return client.sweep(_match(sweeps, reference, "sweep")["id"])  # a list omits the trials


def find_checkpoint(client: WclClient, reference: str, choice: str | None = None) -> str:
    """Return the id of a checkpoint; a job stands for its last checkpoint, or for the chosen one.

    `last` is the newest training, as evaluations have no weights.

    Args:
        client: of the service.
        reference: a checkpoint's id, or a job as in `find_job`.
        choice: of a job's checkpoints: a step, an id, or a part of an id.

    Raises:
        NotFoundError: no job and no checkpoint matches, or the job has no such checkpoint.
        InvalidError: several jobs match.
    """
    try:
        job = find_job(client, reference, "pretrain")
    except NotFoundError:
        if len(reference) != _ID_LENGTH:
            raise
        return client.checkpoint(reference)["id"]
    checkpoints = client.checkpoints(job["id"])
    if not checkpoints:
        raise NotFoundError(404, "Not found", f"job {job['id']} has no checkpoint{_why_none(job)}")
    if choice is None:
        return checkpoints[-1]["id"]
    for each in checkpoints:
        if str(each["step"]) == choice or _matches(each["id"], choice):
            return each["id"]
    steps = ", ".join(str(each["step"]) for each in checkpoints)
    raise NotFoundError(404, "Not found", f"job {job['id']} has no checkpoint {choice}; it has those of steps {steps}")


def _why_none(job: Job) -> str:
    """Return why a job has no checkpoint, and when it writes the first one, as the end of a sentence."""
    if job["ended_at"] is not None:
        return ": it has ended, and either wrote none or its checkpoints were deleted"
    if job["kind"] != "pretrain":
        return " yet"
    chosen = job["spec"].get("checkpoints", {})
    epoch = 1 if chosen.get("first_epoch") else min(chosen.get("every_epochs", 1), job["spec"]["epochs"])
    return f" yet; it writes the first one after epoch {epoch:,} of {job['spec']['epochs']:,}"


@dataclass(frozen=True)
class Start:
    """Weights that a training starts from.

    Attributes:
        sha256: their digest, for the spec.
        backbone: their network, as a part of a spec; None if it is not looked up.
    """

    sha256: str
    backbone: Json | None = None


def find_start(client: WclClient, reference: str) -> Start:
    """Return the weights to start from by a name, a digest, a part of a digest, or a job or checkpoint as above.

    Raises:
        NotFoundError: nothing matches.
        InvalidError: several imported weights or jobs match.
    """
    if (row := _imported(client.all_weights(), reference)) is not None:
        return Start(row["sha256"], row["backbone"])
    if _DIGEST.fullmatch(reference):
        return Start(reference)
    try:
        checkpoint = client.checkpoint(find_checkpoint(client, reference))
    except NotFoundError as error:
        if "has no checkpoint" in error.detail:
            raise
        detail = f"no imported weights and no job match {reference}; `wcl weights list` and `wcl jobs` list them"
        raise NotFoundError(404, "Not found", detail) from error
    return Start(checkpoint["sha256"], client.job(checkpoint["job_id"])["spec"]["backbone"])


def find_weights(client: WclClient, reference: str) -> Weights:
    """Return the imported weights of a name, a digest, or a part of a digest.

    Raises:
        NotFoundError: no weights match.
        InvalidError: several match.
    """
    if (row := _imported(client.all_weights(), reference)) is None:
        detail = f"no imported weights match {reference}; `wcl weights list` lists them"
        raise NotFoundError(404, "Not found", detail)
    return row


def _imported(rows: Sequence[Weights], reference: str) -> Weights | None:
    for row in rows:
        if reference in (row["name"], row["sha256"]):
            return row
    matches = [row for row in rows if _matches(row["sha256"], reference)]
    if len(matches) > 1:
        names = ", ".join(row["name"] for row in matches[:_MOST_LISTED])
        raise InvalidError(400, "Ambiguous", f"{reference} matches the digests of {names}; use a name")
    return matches[0] if matches else None


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


def find_webhook(client: WclClient, reference: str) -> Webhook:
    """Return the webhook of a name, an id, or a part of an id.

    Raises:
        NotFoundError: no webhook matches.
        InvalidError: several webhooks match.
    """
    webhooks = client.webhooks()
    matches = [row for row in webhooks if row["name"] == reference or _matches(row["id"], reference)]
    if not matches:
        raise NotFoundError(404, "Not found", f"no webhook matches {reference}; `wcl webhook list` lists them")
    if len(matches) > 1:
        detail = f"{reference} matches {len(matches)} webhooks; use an id of `wcl webhook list`"
        raise InvalidError(400, "Ambiguous", detail)
    return matches[0]


def find_key(client: WclClient, reference: str) -> Key:
    """Return the key of a name, an id, or a part of an id; of a name, rather an active one.

    Raises:
        NotFoundError: no key matches.
        InvalidError: several keys match.
    """
    keys = client.keys()["items"]
    matches = [row for row in keys if row["name"] == reference or _matches(row["id"], reference)]
    matches = [row for row in matches if row["is_active"]] or matches
    if not matches:
        raise NotFoundError(404, "Not found", f"no key matches {reference}; `wcl keys list --all` lists them")
    if len(matches) > 1:
        raise InvalidError(400, "Ambiguous", f"{reference} matches {len(matches)} keys; use an id of `wcl keys list`")
    return matches[0]


def _match(items: Sequence[Any], reference: str, noun: str) -> Any:
    """Return the only item that a reference matches, as `find_job` does."""
    matches = [item for item in items if reference == "last" or _matches(item["id"], reference)]
    if not matches:
        raise NotFoundError(404, "Not found", f"no {noun} matches {reference}; {_EXPECTED.format('')}")
    if len(matches) > 1:
        raise InvalidError(400, "Ambiguous", f"{reference} matches {len(matches)} {noun}s; {_EXPECTED.format('')}")
    return matches[0]


def _matches(identifier: str, part: str) -> bool:
    return len(part) >= 4 and (identifier.startswith(part) or identifier.endswith(part))
