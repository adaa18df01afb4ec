"""What an attempt begins with: its `run.json`, and the file it begins from, read back and compared with its digest."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

from jobs import damage
from jobs.checkpoints import CheckpointRef
from jobs.database import Database
from jobs.storage import Damaged, Storage, verified
from jobs.transitions import Claim
from wcl_core.failpoints import failpoint
from worker.datasets import Source

log = logging.getLogger(__name__)


class MissingCheckpoint(Exception):  # noqa: N818 (named as the reason it becomes)
    """The run cannot start: no file that it may begin from is there as it was registered."""


def run_file(database: Database, storage: Storage, claim: Claim, source: Source) -> dict[str, Any]:
    """The content of `run.json`, whose files were read and are whole.

    Args:
        source: the job's dataset on this worker.

    Raises:
        MissingCheckpoint, Superseded, StorageUnavailable: as `resume_file`.
    """
    failpoint("supervisor.run_file")
    resume = resume_file(database, storage, claim) if claim.kind == "pretrain" else None
    checkpoint = checkpoint_file(database, storage, claim)
    return {
        "job_id": claim.job_id,
        "attempt": claim.number,
        "host": socket.gethostname(),
        "kind": claim.kind,
        "spec": claim.spec,
        "dataset": {
            "kind": source.facts.kind,
            "path": str(source.path) if source.path else None,
            "digest": claim.dataset_digest,
            "lists": {name: str(path) for name, path in source.lists.items()},
        },
        "resume": str(resume) if resume else None,
        "checkpoint": str(checkpoint) if checkpoint else None,
    }


def resume_file(database: Database, storage: Storage, claim: Claim) -> Path | None:
    """The newest good checkpoint to go on from; None for a run that starts from scratch.

    Each candidate is read once.  A damaged one is marked and told of, and the next older one is tried; when none is
    left, a job that began from scratch starts over.

    Raises:
        MissingCheckpoint: the job is a retry, and nothing is left of what it could go on from.
        Superseded: the attempt has ended.
        StorageUnavailable: the whole storage is away, which says nothing about its files.
    """
    candidate, message = claim.resume, "the checkpoint that it has to go on from is deleted or damaged"
    while candidate is not None:
        try:
            return verified(storage, candidate.path, candidate.sha256, candidate.size)
        except Damaged as error:
            message = f"checkpoint {candidate.id} of step {candidate.step}: {error}"
            log.error("job %s: %s", claim.job_id, message)
        candidate = _next(database, claim, candidate, message)
    if claim.must_resume:
        raise MissingCheckpoint(message)
    return None


def _next(database: Database, claim: Claim, bad: CheckpointRef, message: str) -> CheckpointRef | None:
    return database.write(lambda session: damage.pass_by(session, claim.job_id, claim.number, bad, message))


def checkpoint_file(database: Database, storage: Storage, claim: Claim) -> Path | None:
    """The checkpoint that is evaluated, for which there is no other.

    Raises:
        MissingCheckpoint, Superseded, StorageUnavailable: as `resume_file`.
    """
    wanted = claim.evaluated
    if wanted is None:
        return None
    try:
        return verified(storage, wanted.path, wanted.sha256, wanted.size)
    except Damaged as error:
        database.write(lambda session: damage.mark(session, claim.job_id, claim.number, wanted))
        raise MissingCheckpoint(f"checkpoint {wanted.id}: {error}") from error
