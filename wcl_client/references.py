"""Lookup of a job, sweep, checkpoint, worker or imported weights by a short reference."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from wcl_client.api import WclClient
from wcl_client.errors import FieldProblem, InvalidError, NotFoundError
from wcl_client.output import age
from wcl_client.responses import Checkpoint, Job, JobKind, Json, Key, Webhook, Weights, Worker

_ID_LENGTH = 36
_ID = re.compile("[0-9a-f-]{4,36}")
_DIGEST = re.compile("[0-9a-f]{64}")
_SHORTEST = 4  # characters of a part
_EXPECTED = "expected a name, an id, four or more characters of one of them, or `last`"
_MOST_READ = 200  # jobs, or sweeps
_MOST_LISTED = 8
_SUCCESSION_SECONDS = 20.0  # four heartbeats, unless a setting changes that


def find_job(client: WclClient, reference: str, kind: JobKind | None = None) -> Job:
    """Return the job of an id, of a name, of a part of one of them, or of `last`, which is never an archived job.

    Args:
        client: of the service.
        reference: as the user has written it.
        kind: of the job that `last` means; also of a name, if a job of this kind has it.

    Raises:
        NotFoundError: no job matches; the message proposes a similar name.
        InvalidError: several jobs match; the message lists them.
    """
    if len(reference) == _ID_LENGTH and _ID.fullmatch(reference):
        return client.job(reference)
    if reference == "last":
        jobs = client.jobs(kind=kind, limit=1)
        if not jobs:
            what = f"there is no {'training' if kind == 'pretrain' else 'job'} yet"
            raise NotFoundError(404, "Not found", what)
    else:
        jobs = matching_jobs(client.jobs(archived="all", q=reference, limit=_MOST_READ), reference, kind)
    newest = [] if jobs else client.jobs(archived="all", limit=_MOST_READ)
    return client.job(_chosen(jobs, reference, "job", newest)["id"])  # a list omits the spec


def matching_jobs(rows: Sequence[Any], reference: str, kind: JobKind | None = None) -> list[Any]:
    """Return the jobs, or sweeps, that a reference names.

    A whole name, and the beginning or the end of an id, come before the middle of an id and a part of a name. A job
    that was cancelled before it began comes after all others.

    Args:
        rows: with `id`, `name` and, if a kind is preferred, `kind`.
        reference: as the user has written it.
        kind: of names, those of jobs of this kind alone, if there are any.
    """
    is_part = len(reference) >= _SHORTEST

    def named(matches: Callable[[str], bool]) -> list[Any]:
        jobs = [job for job in rows if matches(job.get("name") or "")]
        return [job for job in jobs if kind and job["kind"] == kind] or jobs

    at_ends = [job for job in rows if is_part and (job["id"].startswith(reference) or job["id"].endswith(reference))]
    whole = [*at_ends, *named(lambda name: name == reference)]
    if not whole and is_part:
        inside = [job for job in rows if _matches(job["id"], reference)]
        whole = [*inside, *named(lambda name: reference.casefold() in name.casefold())]
    named_jobs = {job["id"]: job for job in whole}
    began = {job_id: job for job_id, job in named_jobs.items() if not _is_dropped(job)}
    return list((began or named_jobs).values())


def _is_dropped(row: Any) -> bool:
    """Return whether a job was cancelled before it began; others of its name are meant."""
    return bool(row.get("status") == "cancelled" and row.get("attempt") == 0)  # a deleted one has none


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return the question for the most similar name, as the end of a sentence; "" if none is similar."""
    close = difflib.get_close_matches(word, dict.fromkeys(names), n=1)
    return f"did you mean {close[0]}?" if close else ""


def _chosen(matches: Sequence[Any], reference: str, noun: str, others: Sequence[Any]) -> Any:
    """Return the only match.

    Args:
        matches: jobs, or sweeps.
        reference: as the user has written it.
        noun: for messages.
        others: whose names are proposed where nothing matches.
    """
    if not matches:
        names = [row.get("name") or "" for row in others]
        instead = did_you_mean(reference, names) or _EXPECTED
        raise NotFoundError(404, "Not found", f"no {noun} matches {reference}; {instead}")
    if len(matches) > 1:
        shown = f", the newest {_MOST_LISTED} of which are listed" if len(matches) > _MOST_LISTED else ""
        title = f"{reference} matches {len(matches)} {noun}s{shown}; choose one by its id"
        lines = [(row["id"][-12:], f"{row['name']} ({_about(row)})") for row in matches[:_MOST_LISTED]]
        raise InvalidError(400, title, errors=tuple(FieldProblem(*line) for line in lines))
    return matches[0]


def _about(row: Any) -> str:
    """Return what tells jobs, or sweeps, of one name apart."""
    kind = [row["kind"]] if "kind" in row else []
    return ", ".join([*kind, row["status"], f"{age(row['created_at'])} old"])


def find_sweep(client: WclClient, reference: str) -> Json:
    """Return the sweep of an id, of a name, of a part of one of them, or of `last`; raise as `find_job`."""
    if len(reference) == _ID_LENGTH and _ID.fullmatch(reference):
        return client.sweep(reference)
    sweeps = client.sweeps(limit=1 if reference == "last" else _MOST_READ)
    matches = sweeps if reference == "last" else matching_jobs(sweeps, reference)
    return client.sweep(_chosen(matches, reference, "sweep", sweeps)["id"])  # a list omits the trials


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


def checkpoint_sentence(checkpoint: Checkpoint, job: Job) -> str:
    """Return which checkpoint of a training it is, and whether the training goes on."""
    epochs = (job.get("spec") or {}).get("epochs", 0)
    text = (
        f"the checkpoint of epoch {checkpoint['epoch']:,} of {epochs:,} (step {checkpoint['step']:,}) of {job['name']}"
    )
    if job["status"] == "paused":
        return f"{text}, which is paused"
    return text if job["ended_at"] else f"{text}, which goes on"


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
    imported = client.all_weights()
    if (row := _imported(imported, reference)) is not None:
        return Start(row["sha256"], row["backbone"])
    if _DIGEST.fullmatch(reference):
        return Start(reference)
    try:
        checkpoint = client.checkpoint(find_checkpoint(client, reference))
    except NotFoundError as error:
        if "has no checkpoint" in error.detail:
            raise
        similar = did_you_mean(reference, [each["name"] for each in imported])
        similar = similar or "".join(error.detail.partition("did you mean")[1:])
        instead = similar or "`wcl weights list` and `wcl jobs` list them"
        detail = f"no imported weights and no job match {reference}; {instead}"
        raise NotFoundError(404, "Not found", detail) from error
    return Start(checkpoint["sha256"], client.job(checkpoint["job_id"])["spec"]["backbone"])


def find_weights(client: WclClient, reference: str) -> Weights:
    """Return the imported weights of a name, a digest, or a part of a digest.

    Raises:
        NotFoundError: no weights match.
        InvalidError: several match.
    """
    imported = client.all_weights()
    if (row := _imported(imported, reference)) is None:
        similar = did_you_mean(reference, [each["name"] for each in imported])
        detail = f"no imported weights match {reference}; {similar or '`wcl weights list` lists them'}"
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

    A worker that was killed counts as live until its lease ends.  So a name means the newest worker of that name, once
    it has sent heartbeats for `_SUCCESSION_SECONDS` while each other one has sent none since the start of the newest.
    Of workers of a name that have all ended, it means the newest one, too.

    Raises:
        NotFoundError: no worker matches.
        InvalidError: several workers match.
    """
    rows = client.workers()
    named = [row for row in rows if row["name"] == reference]
    newest = max(named, key=lambda row: datetime.fromisoformat(row["started_at"]), default=None)
    rows = [row for row in rows if row["name"] != reference or row["is_live"] or row is newest]
    replaced = _replaced(rows, reference)

    def is_first(row: Worker) -> bool:
        return row["is_live"] and row["id"] not in replaced

    worker: Worker = _only(rows, reference, "worker", "wcl worker list", is_first)
    return worker


def _replaced(rows: Sequence[Worker], name: str) -> set[str]:
    """Return the ids of the live workers of a name that the newest of them has replaced."""
    named = [row for row in rows if row["name"] == name and row["is_live"]]
    if not named:
        return set()
    newest = max(named, key=lambda row: datetime.fromisoformat(row["started_at"]))
    start = datetime.fromisoformat(newest["started_at"])
    if datetime.fromisoformat(newest["seen_at"]) - start < timedelta(seconds=_SUCCESSION_SECONDS):
        return set()
    others = (row for row in named if row is not newest)
    return {row["id"] for row in others if datetime.fromisoformat(row["seen_at"]) < start}


def find_webhook(client: WclClient, reference: str) -> Webhook:
    """Return the webhook of a name, an id, or a part of an id.

    Raises:
        NotFoundError: no webhook matches.
        InvalidError: several webhooks match.
    """
    webhook: Webhook = _only(client.webhooks(), reference, "webhook", "wcl webhook list")
    return webhook


def find_key(client: WclClient, reference: str) -> Key:
    """Return the key of a name, an id, or a part of an id; of a name, rather an active one.

    Raises:
        NotFoundError: no key matches.
        InvalidError: several keys match.
    """
    key: Key = _only(client.keys()["items"], reference, "key", "wcl keys list --all", lambda row: row["is_active"])
    return key


def _only(
    rows: Sequence[Any], reference: str, noun: str, listing: str, is_first: Callable[[Any], bool] | None = None
) -> Any:
    """Return the only row of a name, or of a part of an id.

    Args:
        rows: with `id` and `name`.
        reference: as the user has written it.
        noun: for messages.
        listing: the command that lists the rows.
        is_first: whether a row comes before those for which this is false.
    """
    matches = [each for each in rows if each["name"] == reference or _matches(each["id"], reference)]
    if is_first is not None:
        matches = [each for each in matches if is_first(each)] or matches
    if not matches:
        names: list[str] = [each["name"] for each in rows]
        instead = did_you_mean(reference, names) or f"`{listing}` lists them"
        raise NotFoundError(404, "Not found", f"no {noun} matches {reference}; {instead}")
    if len(matches) > 1:
        detail = f"{reference} matches {len(matches)} {noun}s; use an id of `{listing}`"
        raise InvalidError(400, "Ambiguous", detail)
    return matches[0]


def _matches(identifier: str, part: str) -> bool:
    return len(part) >= _SHORTEST and part in identifier
