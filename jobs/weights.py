"""Weights that trainings start from, by their digest: imported files, and full checkpoints of other jobs.

    `wcl weights import` ── converts on the user's machine ── the server checks names, types and bytes ── storage, row
    a spec's `weights` ── `source` ── the worker's run file

A row is removed only while no unfinished job needs it; a new job locks it (`hold`), as it locks a checkpoint.

    store      file into the storage ── row, if the file is still there
    discard    placeholder for the row ── file removed ── placeholder removed

The two cannot interleave, because rows with one digest exclude each other.  So no row is left without its file, and a
crash leaves at most a file without a row, which `collect` removes.
"""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jobs import access, activity, needs
from jobs.checked_files import BadFile
from jobs.checkpoints import is_good
from jobs.database import Database, within
from jobs.errors import Conflict, FieldError, Invalid, existing
from jobs.models import Checkpoint, Job, Weights
from jobs.status import Reason, Status
from jobs.storage import Storage
from wcl_core.config import DATASET_NAME, is_transformer

log = logging.getLogger(__name__)

FOLDER = "weights"  # of the storage; jobs have a folder under their id
NAME = DATASET_NAME
_FILE = "weights.safetensors"
_TRIES = 3


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
    return f"{FOLDER}/{sha256}/{_FILE}"


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


def network_title(backbone: dict[str, Any]) -> str:
    """Return a network in a few words, for example `resnet18, stem imagenet`."""
    if is_transformer(backbone["name"]):
        return f"{backbone['name']}, patches of {backbone['patch_size']}"
    width = f", width {backbone['width']}" if backbone["name"] == "tiny" else ""
    return f"{backbone['name']}, stem {backbone['stem']}{width}"


def get(session: Session, sha256: str) -> Weights:
    """Return imported weights.

    Raises:
        NotFound: there are none with this digest.
    """
    return existing(session.get(Weights, sha256), "imported weights with the digest", sha256[:100])


def check_format(name: str) -> None:
    """Refuse a name that would be read as something else where a name, a digest or a job is expected.

    Raises:
        Invalid: it is `last`, or has the form of a digest.
    """
    if name == "last" or (re.fullmatch("[0-9a-f]{64}", name)):
        raise Invalid([FieldError("name", f"{name} is no name; expected for example resnet18-imagenet")])


def check_name(session: Session, sha256: str, name: str) -> None:
    """Return if weights with this digest may have this name.

    Raises:
        Conflict: other weights have it.
    """
    taken = session.execute(select(Weights.sha256).where(Weights.name == name, Weights.sha256 != sha256))
    if (other := taken.scalar_one_or_none()) is not None:
        raise Conflict(f"other weights are called {name} ({other[:12]}…); choose another name, or remove them first")


def store(database: Database, storage: Storage, file: BinaryIO, fields: dict[str, Any]) -> tuple[Weights, bool]:
    """Store an imported file and its row; return the row, and whether it is new.

    Of equal files there is one row, with the name of the first import.  Its file is written again, so that an import
    also replaces a file that is damaged or missing.

    Args:
        database, storage: the service.
        file: checked, open for reading.
        fields: of the row; `sha256` is the digest of the file.

    Raises:
        Conflict: other weights have the name, or these were removed again and again meanwhile.
        OSError: the storage cannot take the file; nothing is left of it.
    """
    sha256 = fields["sha256"]
    try:
        for _ in range(_TRIES):
            with database.read() as session:
                if session.get(Weights, sha256) is None:
                    check_name(session, sha256, fields["name"])
            with suppress(FileNotFoundError, IntegrityError):  # the file was collected, or another import was as quick
                file.seek(0)
                storage.write(file, storage_key(sha256))
                return database.write(lambda session: _register(session, storage, fields))
    except Conflict:
        _discard_quietly(database, storage, sha256)
        raise
    raise Conflict("the weights were removed while they were imported; import them again")


def _register(session: Session, storage: Storage, fields: dict[str, Any]) -> tuple[Weights, bool]:
    """Add the row of a stored file unless it is there; raise FileNotFoundError if the file was removed meanwhile."""
    row = session.get(Weights, fields["sha256"], with_for_update={"read": True})
    is_new = row is None
    if row is None:
        row = add(session, Weights(**fields))
        activity.note(session, "weights.import", row.sha256, row.name)
    storage.require(storage_key(row.sha256))
    _resume_waiting(session, row.sha256)
    return row, is_new


def _resume_waiting(session: Session, sha256: str) -> None:
    """Queue the jobs again that are paused because the file was missing or damaged."""
    from jobs.transitions.status_change import move  # here: the transitions read the checks, and these the weights

    needs_it = (Job.status_reason == Reason.MISSING_CHECKPOINT, Job.spec["weights"].as_string() == sha256)
    paused = select(Job.id).where(Job.status == Status.PAUSED, *needs_it).order_by(Job.id)
    with within(session, None):  # all projects share imported weights
        for job_id in session.execute(paused).scalars().all():
            message = "its weights are imported again"
            before = frozenset({Status.PAUSED})
            move(session, job_id, before, Status.QUEUED, "resumed", message=message, not_before=None)


def add(session: Session, row: Weights) -> Weights:
    """Add the row of imported weights, whose file is stored.

    Raises:
        IntegrityError: there is a row with this digest or this name.
    """
    session.add(row)
    session.flush()
    return row


def discard(database: Database, storage: Storage, sha256: str) -> None:
    """Remove the file with a digest unless it has a row.

    Raises:
        OSError: it cannot be removed now; `collect` repeats this.
    """

    def change(session: Session) -> None:
        if session.get(Weights, sha256) is not None:
            return
        facts = {"name": f".{sha256[:63]}", "size": 0, "backbone": {}, "image_size": 0, "report": {}}
        placeholder = add(session, Weights(sha256=sha256, **facts))  # an import of this file waits for the commit
        storage.delete(storage_key(sha256))
        session.delete(placeholder)

    with suppress(IntegrityError):  # it was imported meanwhile
        database.write(change)


def _discard_quietly(database: Database, storage: Storage, sha256: str) -> None:
    try:
        discard(database, storage, sha256)
    except OSError as error:
        log.warning("the file of the weights %s cannot be removed: %s", sha256, error)


def collect(database: Database, storage: Storage) -> int:
    """Remove files of weights that have no row, as a server leaves them that died, and return their number.

    Raises:
        OSError: the storage cannot be reached, or a file cannot be removed now.
    """
    keys = list(storage.keys(FOLDER))
    digests = {key.split("/")[1] for key in keys}
    with database.read() as session:
        registered = set(session.execute(select(Weights.sha256).where(Weights.sha256.in_(digests))).scalars())
    orphans = [key for key in keys if key.split("/")[2] != _FILE or key.split("/")[1] not in registered]
    for key in orphans:
        if key.split("/")[2] == _FILE:
            discard(database, storage, key.split("/")[1])
        else:  # a partial copy; an import that still writes it begins again
            storage.delete(key)
    if orphans:
        log.info("removed %d files of weights that belong to no row, %s first", len(orphans), orphans[0])
    return len(orphans)


def flaw(storage: Storage, row: Weights) -> BadFile | None:
    """Read the whole file of imported weights, and return what is wrong with it; None if nothing is.

    Raises:
        StorageUnavailable: the storage itself cannot be reached.
    """
    try:
        storage.verify(storage_key(row.sha256), row.sha256, row.size)
    except BadFile as error:
        return error
    return None


def remove(database: Database, storage: Storage, sha256: str) -> None:
    """Remove imported weights and their file.

    Raises:
        NotFound: there are none with this digest.
        Conflict: an unfinished job or sweep needs them.
    """
    database.write(lambda session: remove_row(session, sha256))
    _discard_quietly(database, storage, sha256)


def remove_row(session: Session, sha256: str) -> None:
    """Remove the row alone; otherwise as `remove`."""
    row = session.get(Weights, sha256, with_for_update=True)
    row = existing(row, "imported weights with the digest", sha256[:100])
    access.check_owner_of_shared(session, row.created_by, f"the weights {row.name}")
    if users := needs.of_files(session, [sha256]):
        raise Conflict(f"{users[0].user} needs the weights; cancel it, or wait for its end")
    with within(session, None):
        if needs.of_files(session, [sha256]):
            raise Conflict("an unfinished job or sweep of another project needs the weights; try again later")
    session.execute(delete(Weights).where(Weights.sha256 == sha256))
    activity.note(session, "weights.remove", sha256, row.name)
