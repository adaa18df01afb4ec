"""Preparation of a run: its run file, and the checkpoint files that it starts from or evaluates."""

from __future__ import annotations

import logging
import socket
from functools import partial
from pathlib import Path

from sqlalchemy import select

from jobs import checkpoints, damage, gangs
from jobs.checked_files import BadFile, Missing
from jobs.checkpoints import CheckpointRef
from jobs.database import Database
from jobs.models import Checkpoint
from jobs.storage import Storage, StorageUnavailable, verified
from jobs.transitions import Claim
from wcl_core.failpoints import failpoint
from wcl_core.protocol import CacheFolder, RunFile
from worker.attempt_folder import place_of
from worker.datasets import Source

log = logging.getLogger(__name__)


class MissingCheckpoint(Exception):  # noqa: N818 (named as the reason it becomes)
    """The run cannot start: no checkpoint file that it needs is in the storage as it was registered."""


def run_file(
    database: Database,
    storage: Storage,
    claim: Claim,
    source: Source,
    folder: Path,
    cache: CacheFolder | None = None,
    gpus: int | None = None,
    rendezvous: gangs.Rendezvous | None = None,
) -> RunFile:
    """Return the run file, after reading each checkpoint file and comparing it with its digest.

    Args:
        database, storage: the service.
        source: the job's dataset on this worker.
        folder: the attempt's folder.
        cache: of decoded images; None decodes a folder at each start.
        gpus: number of GPUs that the run holds; None if the worker does not decide which ones it sees.
        rendezvous: of a further node of several, which resumes from the checkpoint that the first one has chosen.

    Raises:
        MissingCheckpoint, Superseded, StorageUnavailable: as `resume_file`.
    """
    failpoint("supervisor.run_file")
    if rendezvous is not None:
        resume = chosen_file(database, storage, rendezvous)
    else:
        resume = resume_file(database, storage, claim) if claim.kind == "pretrain" else None
    return RunFile.model_validate(
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
            "resume": resume,
            "evaluated": evaluated_file(database, storage, claim),
            "gpus": gpus,
        }
    )


def chosen_file(database: Database, storage: Storage, rendezvous: gangs.Rendezvous) -> Path | None:
    """Return the checkpoint file that the first node has chosen for all.

    Raises:
        StorageUnavailable: this worker does not see the file as it was registered.
    """
    if rendezvous.checkpoint_id is None:
        return None
    with database.read() as session:
        chosen = CheckpointRef.of(session.get_one(Checkpoint, rendezvous.checkpoint_id))
    try:
        return verified(storage, chosen.storage_key, chosen.sha256, chosen.size)
    except BadFile as flaw:
        raise StorageUnavailable(f"another node of the job has read {chosen.describe()}, but here {flaw}") from flaw


def id_of(database: Database, storage: Storage, claim: Claim, file: Path | None) -> str | None:
    """Return the id of the checkpoint with this file, from which an attempt resumes; None for a start from scratch."""
    if file is None:
        return None
    jobs = {claim.job_id} | ({claim.resume.job_id} if claim.resume else set())
    with database.read() as session:
        rows = session.execute(select(Checkpoint.id, Checkpoint.storage_key).where(Checkpoint.job_id.in_(jobs))).all()
    return next(each for each, key in rows if storage.path(key) == file)


def resume_file(database: Database, storage: Storage, claim: Claim) -> Path | None:
    """Return the newest good checkpoint file to continue from; None for a run that starts from scratch.

    Each candidate is read once.  One with a flaw is marked and reported, and the next older one is tried.  A newer one
    that was marked as missing counts again once its file is there.  When none is left, a job that started from scratch
    starts over.

    Raises:
        MissingCheckpoint: the job is a retry, and no checkpoint to continue from is left.
        Superseded: the attempt has ended.
        StorageUnavailable: the whole storage is unavailable, or none of the job's files is there; they may be good.
    """
    if (returned := _returned_file(database, storage, claim)) is not None:
        return returned
    candidate, message = claim.resume, "the checkpoint to continue from is deleted or damaged"
    while candidate is not None:
        try:
            return verified(storage, candidate.storage_key, candidate.sha256, candidate.size)
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


def _returned_file(database: Database, storage: Storage, claim: Claim) -> Path | None:
    """Return the best file that was missing, is there again, and is better than the one to resume from."""
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
            path = verified(storage, candidate.storage_key, candidate.sha256, candidate.size)
        except BadFile:
            continue
        database.write(partial(damage.mark, attempt=claim.attempt, checkpoint_id=candidate.id, flaw=None))
        return path
    return None


def evaluated_file(database: Database, storage: Storage, claim: Claim) -> Path | None:
    """Return the file of the checkpoint to evaluate; None for a job that evaluates none.

    Raises:
        MissingCheckpoint, Superseded, StorageUnavailable: as `resume_file`; no other checkpoint can take its place.
    """
    evaluated = claim.evaluated
    if evaluated is None:
        return None
    try:
        return verified(storage, evaluated.storage_key, evaluated.sha256, evaluated.size)
    except BadFile as error:
        flaw = error
    if isinstance(flaw, Missing):
        damage.check_not_lost(database, storage, evaluated.job_id)
    database.write(lambda session: damage.mark(session, claim.attempt, evaluated.id, flaw))
    raise MissingCheckpoint(f"checkpoint {evaluated.id}: {flaw}") from flaw
