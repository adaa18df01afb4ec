"""Preparation of a run: its run file, and the checkpoint files that it starts from or evaluates."""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jobs import checkpoints, damage, gangs, weights
from jobs.checked_files import BadFile, Missing
from jobs.checkpoints import CheckpointRef
from jobs.database import Database
from jobs.models import Checkpoint
from jobs.storage import Storage, StorageUnavailable
from jobs.transitions import Claim
from wcl_core.failpoints import failpoint
from wcl_core.protocol import CacheFolder, RunFile
from worker.attempt_folder import place_of
from worker.datasets import Source

log = logging.getLogger(__name__)


class MissingCheckpoint(Exception):  # noqa: N818 (named as the reason it becomes)
    """The run cannot start: no checkpoint file that it needs is in the storage as it was registered."""


class MissingWeights(MissingCheckpoint):
    """The file of imported weights is missing or damaged; a user can import it again."""


@dataclass(frozen=True)
class Resume:
    """The checkpoint that an attempt continues from, and its file, which has been read."""

    checkpoint: CheckpointRef
    file: Path


@dataclass(frozen=True)
class Prepared:
    """A run file; and for the first node of several the id of the checkpoint in it, which the other nodes read too."""

    run: RunFile
    resume_id: str | None


def run_file(
    database: Database,
    storage: Storage,
    claim: Claim,
    source: Source,
    folder: Path,
    cache: CacheFolder | None = None,
    gpus: int | None = None,
    rendezvous: gangs.Rendezvous | None = None,
) -> Prepared:
    """Return the run file, after reading each checkpoint file and comparing it with its digest.

    Args:
        database, storage: the service.
        source: the job's dataset on this worker.
        folder: the attempt's folder; a storage that is not local puts copies there.
        cache: of decoded images; None decodes a folder at each start.
        gpus: number of GPUs that the run holds; None if the worker does not decide which ones it sees.
        rendezvous: of a further node of several, which resumes from the checkpoint that the first one has chosen.

    Raises:
        MissingCheckpoint, Superseded, StorageUnavailable: as `resume_file`.
    """
    failpoint("supervisor.run_file")
    if rendezvous is not None:
        resume = chosen_file(database, storage, rendezvous, folder)
    else:
        resume = resume_file(database, storage, claim, folder) if claim.kind == "pretrain" else None
    run = RunFile.model_validate(
        {
            "job_id": claim.job_id,
            "attempt": claim.number,
            "token": claim.attempt.token,
            "host": socket.gethostname(),
            "place": place_of(folder),
            "kind": claim.kind,
            "spec": claim.spec,
            "dataset": {
                "kind": source.facts.kind,
                "path": source.path,
                "digest": claim.dataset_digest,
                "lists": source.lists,
                "list_digests": {name: facts["digest"] for name, facts in source.facts.label_lists.items()},
                "cache": cache,
                "has_labels": source.has_labels,
            },
            "resume": resume.file if resume else None,
            "weights": None if resume else weights_file(database, storage, claim, folder),
            "evaluated": evaluated_file(database, storage, claim, folder),
            "sha256": resume.checkpoint.sha256 if resume else _start_digest(claim),
            "gpus": gpus,
            "request_id": claim.request_id,
        }
    )
    return Prepared(run, resume.checkpoint.id if resume else None)


def _start_digest(claim: Claim) -> str | None:
    return claim.evaluated.sha256 if claim.evaluated else claim.spec.get("weights")


def chosen_file(database: Database, storage: Storage, rendezvous: gangs.Rendezvous, folder: Path) -> Resume | None:
    """Return the checkpoint that the first node has chosen for all.

    Raises:
        StorageUnavailable: this worker does not see the file as it was registered.
    """
    if rendezvous.checkpoint_id is None:
        return None
    with database.read() as session:
        chosen = CheckpointRef.of(session.get_one(Checkpoint, rendezvous.checkpoint_id))
    try:
        return Resume(chosen, storage.fetch(chosen.storage_key, chosen.sha256, chosen.size, folder))
    except BadFile as flaw:
        raise StorageUnavailable(f"another node of the job has read {chosen.describe()}, but here {flaw}") from flaw


def resume_file(database: Database, storage: Storage, claim: Claim, folder: Path) -> Resume | None:
    """Return the newest good checkpoint to continue from; None for a run that starts from scratch.

    Each candidate is read once.  One with a flaw is marked and reported, and the next older one is tried.  A newer one
    that was marked as missing counts again once its file is there.  When none is left, a job that started from scratch
    starts over.

    Raises:
        MissingCheckpoint: the job is a retry, and no checkpoint to continue from is left.
        Superseded: the attempt has ended.
        StorageUnavailable: the whole storage is unavailable, or none of the job's files is there; they may be good.
    """
    if (returned := _returned_file(database, storage, claim, folder)) is not None:
        return returned
    candidate, message = claim.resume, "the checkpoint to continue from is deleted or damaged"
    while candidate is not None:
        try:
            return Resume(candidate, storage.fetch(candidate.storage_key, candidate.sha256, candidate.size, folder))
        except BadFile as flaw:
            message = f"{candidate.describe()}: {flaw}"
            log.error("job %s: %s", claim.job_id, message)
            candidate = _next(database, storage, claim, candidate, flaw)
    if claim.must_resume:
        raise MissingCheckpoint(message)
    return None


def _next(
    database: Database, storage: Storage, claim: Claim, bad: CheckpointRef, flaw: BadFile
) -> CheckpointRef | None:
    if isinstance(flaw, Missing):
        damage.check_not_lost(database, storage, bad.job_id)
    return database.write(lambda session: damage.skip(session, claim.attempt, bad, flaw))


def _returned_file(database: Database, storage: Storage, claim: Claim, folder: Path) -> Resume | None:
    """Return the best one whose file was missing, is there again, and is better than the one to resume from."""
    if claim.number == 1 and claim.resume is None and not claim.must_resume:
        return None  # the job has no checkpoint yet

    def rank(checkpoint: CheckpointRef) -> tuple[bool, int]:
        return checkpoint.job_id == claim.job_id, checkpoint.step

    with database.read() as session:
        missing = checkpoints.missing(session, claim.job_id)
    for candidate in missing:
        if claim.resume is not None and rank(candidate) <= rank(claim.resume):
            break
        try:
            path = storage.fetch(candidate.storage_key, candidate.sha256, candidate.size, folder)
        except BadFile:
            continue
        database.write(partial(damage.mark, attempt=claim.attempt, checkpoint_id=candidate.id, flaw=None))
        return Resume(candidate, path)
    return None


def weights_file(database: Database, storage: Storage, claim: Claim, folder: Path) -> Path | None:
    """Return the file of the weights that the spec starts from; None for random ones.

    Raises:
        MissingWeights: imported weights have no file, or it has other bytes.
        MissingCheckpoint: the same of a checkpoint, or the weights were removed.
        StorageUnavailable: the storage itself cannot be reached.
    """
    if (sha256 := claim.spec.get("weights")) is None:
        return None
    with database.read() as session:
        source = weights.source(session, sha256)
    if source is None:
        raise MissingCheckpoint(f"the weights {sha256} to start from are deleted, damaged or missing")
    try:
        return storage.fetch(source.storage_key, sha256, source.size, folder)
    except BadFile as flaw:
        message = f"the weights {sha256} to start from ({source.name}): {flaw}"
        if source.checkpoint_id is not None:
            raise MissingCheckpoint(message) from flaw
        advice = "import the file again, and the job continues; or put it back, and resume the job"
        raise MissingWeights(f"{message}; {advice}") from flaw


def evaluated_file(database: Database, storage: Storage, claim: Claim, folder: Path) -> Path | None:
    """Return the file of the checkpoint to evaluate; None for a job that evaluates none.

    Raises:
        MissingCheckpoint, Superseded, StorageUnavailable: as `resume_file`; no other checkpoint can take its place.
    """
    evaluated = claim.evaluated
    if evaluated is None:
        return None
    try:
        return storage.fetch(evaluated.storage_key, evaluated.sha256, evaluated.size, folder)
    except BadFile as error:
        flaw = error
    if isinstance(flaw, Missing):
        damage.check_not_lost(database, storage, evaluated.job_id)
    database.write(lambda session: damage.mark(session, claim.attempt, evaluated.id, flaw))
    raise MissingCheckpoint(f"checkpoint {evaluated.id}: {flaw}") from flaw
