"""Moving all registered files to another storage.

    workers live ── copy, and stop there
    none lives   ── the former storage loses its id ── copy the rest ── the new one gets the id

Each file is read, compared with its registered digest, and copied unless the new storage has it.  So the move may be
stopped at any time, and the same command continues it.  The files of the former storage stay; an operator removes them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from itertools import islice

from sqlalchemy import select

from jobs import storage_id
from jobs.backups.making import registered
from jobs.bucket import CHECKED_SECONDS
from jobs.checked_files import BadFile
from jobs.database import Database
from jobs.models import Job, Worker
from jobs.storage import ForeignStorage, Storage

_SAMPLE = 200


@dataclass(frozen=True)
class Moved:
    """The result of a move.

    Attributes:
        num_copied, copied_bytes: of files that the new storage did not have.
        num_present: files that it had.
        bad: keys of files that neither storage has as registered.
        workers: names of live workers; the move ends once there are none.
    """

    num_copied: int
    copied_bytes: int
    num_present: int
    bad: tuple[str, ...]
    workers: tuple[str, ...]


def move(database: Database, source: Storage, target: Storage) -> Moved:
    """Copy all registered files, and make the target the database's storage if no worker is live.

    Raises:
        ForeignStorage: the source is not the database's storage, or the target is another one's.
        StorageUnavailable: one of them cannot be used.
    """
    own_id = database.read_once(storage_id.id_of)
    _check_target(database, target, own_id)
    if source.marker() is None and target.marker() == own_id:
        return Moved(0, 0, 0, (), ())  # an earlier call has moved everything
    if source.marker() not in (None, own_id) or (own_id is None):
        raise ForeignStorage(f"{source.where} is not the storage of this database")
    source.id = target.id = None  # a call that was interrupted late has taken the id of the source away
    workers = _live_workers(database)
    if not workers and source.marker() is not None:
        source.unmark()  # from here on no process stores a file there
        if not source.is_folder:
            time.sleep(CHECKED_SECONDS)  # a server may have compared the id just before
    copied = _copy(database, source, target)
    if not workers:
        storage_id.adopt(database, target, without_files=True)
    return Moved(*copied, workers)


def _copy(database: Database, source: Storage, target: Storage) -> tuple[int, int, int, tuple[str, ...]]:
    with database.engine.connect() as connection:
        files = registered(connection)
    num_copied = copied_bytes = num_present = 0
    bad = []
    for file in files:
        try:
            if target.bring(partial(source.read, file.storage_key), file.storage_key, file.sha256, file.size):
                num_copied, copied_bytes = num_copied + 1, copied_bytes + file.size
            else:
                num_present += 1
        except BadFile:
            bad.append(file.storage_key)
    return num_copied, copied_bytes, num_present, tuple(bad)


def _check_target(database: Database, target: Storage, own_id: str | None) -> None:
    """Raise ForeignStorage if the target holds files or the id of another database."""
    if target.marker() not in (None, own_id):
        raise ForeignStorage(f"the new place is the storage of another service ({target.where})")
    found = list(islice(target.job_ids(), _SAMPLE))
    with database.read() as session:
        if found and session.execute(select(Job.id).where(Job.id.in_(found)).limit(1)).first() is None:
            raise ForeignStorage(f"the new place holds files of another service ({target.where})")


def _live_workers(database: Database) -> tuple[str, ...]:
    with database.read() as session:
        return tuple(session.execute(select(Worker.name).where(Worker.is_live).order_by(Worker.name)).scalars())
