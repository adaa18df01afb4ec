"""Weights that trainings start from, by their digest: imported files, and full checkpoints of other jobs.

    `wcl weights import` ── converts on the user's machine ── the server checks names, types and bytes ── storage, row
    a spec's `weights` ── `source` ── the worker's run file

A row is removed only while no unfinished job needs it; a new job locks it (`hold`), as it locks a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jobs.checkpoints import is_good
from jobs.errors import Conflict, existing
from jobs.models import Checkpoint, Job, Weights
from jobs.status import TERMINAL

FOLDER = "weights"  # of the storage; jobs have a folder under their id


@dataclass(frozen=True)
class Source:
    """A file that a training can start from.

    Attributes:
        name: for messages.
        backbone: the network that it holds, as a part of a spec.
        image_size: that the network was trained at.
        checkpoint_id: of a checkpoint; None for imported weights.
    """

    name: str
    sha256: str
    size: int
    storage_key: str
    backbone: dict[str, Any]
    image_size: int
    checkpoint_id: str | None = None
    job_id: str | None = None


def storage_key(sha256: str) -> str:
    return f"{FOLDER}/{sha256}/weights.safetensors"


def source(session: Session, sha256: str) -> Source | None:
    """Return the file with a digest that a training can start from; None if there is none."""
    row = session.get(Weights, sha256)
    if row is not None:
        return Source(row.name, sha256, row.size, storage_key(sha256), row.backbone, row.image_size)
    statement = select(Checkpoint, Job).join(Job, Job.id == Checkpoint.job_id)
    statement = statement.where(Checkpoint.sha256 == sha256, is_good()).order_by(Checkpoint.id.desc()).limit(1)
    if (pair := session.execute(statement).one_or_none()) is None:
        return None
    checkpoint, job = pair
    return Source(
        f"step {checkpoint.step} of {job.name}",
        sha256,
        checkpoint.size,
        checkpoint.storage_key,
        job.spec["backbone"],
        job.spec["data"]["image_size"],
        checkpoint.id,
        job.id,
    )


def hold(session: Session, sha256: str) -> None:
    """Lock the rows with a digest until the transaction ends, so that none is removed meanwhile."""
    session.execute(select(Weights.sha256).where(Weights.sha256 == sha256).with_for_update(read=True))
    session.execute(select(Checkpoint.id).where(Checkpoint.sha256 == sha256, is_good()).with_for_update(read=True))


def every(session: Session) -> list[Weights]:
    """Return all imported weights by name."""
    return list(session.execute(select(Weights).order_by(Weights.name)).scalars())


def get(session: Session, sha256: str) -> Weights:
    """Return imported weights.

    Raises:
        NotFound: there are none with this digest.
    """
    return existing(session.get(Weights, sha256), f"imported weights with the digest {sha256[:100]}")


def add(session: Session, row: Weights) -> Weights:
    """Add imported weights, or return those that are there; the file is stored already.

    Raises:
        Conflict: other weights have this name.
    """
    if (present := session.get(Weights, row.sha256)) is not None:
        return present
    session.add(row)
    try:
        session.flush()
    except IntegrityError as error:
        raise Conflict(f"other weights are called {row.name}; choose another name") from error
    return row


def remove(session: Session, sha256: str) -> None:
    """Remove imported weights; the caller removes the file after the commit.

    Raises:
        NotFound: there are none with this digest.
        Conflict: an unfinished job needs them.
    """
    existing(session.get(Weights, sha256, with_for_update=True), f"imported weights with the digest {sha256[:100]}")
    needs = select(Job.id).where(Job.status.not_in(TERMINAL), Job.spec["weights"].as_string() == sha256)
    if (job_id := session.execute(needs.limit(1)).scalar_one_or_none()) is not None:
        raise Conflict(f"job {job_id} needs the weights")
    session.execute(delete(Weights).where(Weights.sha256 == sha256))
