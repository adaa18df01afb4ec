"""The storage that belongs to a database: the storage has an id in a file, and the database keeps the same id.

connect                the first process gives both the id; every later one compares them
refuse_new_database    no new SQLite database is made beside the files of another one
adopt                  an operator declares that the folder is this database's storage, as after a restored backup
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jobs import models
from jobs.attempts import AttemptRef
from jobs.database import Database, insert, new_id
from jobs.settings import Settings
from jobs.storage import ForeignStorage, Storage, StorageUnavailable, open_storage

_NAME = "checkpoints"  # of the only storage
_SAMPLE = 200  # jobs with files that are looked up in the database
_ADOPT = "if the files belong to this database, as after a restored backup, run `python -m jobs adopt-storage`"


def connect(database: Database, storage: Storage) -> None:
    """Set the storage's id to the one of the database, after comparing it with the folder's.

    The first call for a database gives both their id, unless one of them already holds files that the other one does
    not have.  It may be repeated at any time.

    Raises:
        ForeignStorage: the folder is absent or another one.
        StorageUnavailable: it cannot be used, or does not respond.
    """
    try:
        _compare(database, storage)
    except StorageUnavailable:
        raise
    except OSError as error:
        raise StorageUnavailable(f"{storage.kind} cannot be used: {error.strerror or error}") from error


def _compare(database: Database, storage: Storage) -> None:
    expected = database.read_once(id_of)
    if expected is None:
        storage.id = None  # the files of any folder may be listed
        try:
            expected = database.write(lambda session: _introduce(session, storage))
        finally:
            storage.id = expected or ""  # after a refusal no folder is accepted
    storage.id = expected
    try:
        storage.check()
    except ForeignStorage as error:
        raise ForeignStorage(f"{error}; {_ADOPT}") from error
    _check_owner(database, storage)


def refuse_new_database(settings: Settings) -> None:
    """Return unless a new SQLite database would be made beside files of another database.

    Raises:
        ForeignStorage: there are such files.
    """
    file = settings.sqlite_file
    if file is None or (file.exists() and file.stat().st_size):
        return
    storage, place = open_storage(settings), settings.storage_url or settings.checkpoints_dir
    if next(_jobs_with_files(storage), None) is not None:
        raise ForeignStorage(
            f"the database {file} is absent or empty, but {place} holds files of another database; "
            "set WCL_DATABASE_URL to that database or restore it; "
            "to keep the files beside a new database, run `python -m jobs adopt-storage`"
        )


def adopt(database: Database, storage: Storage, *, without_files: bool = False) -> str:
    """Make the folder this database's storage, whatever both held before; return the id of both.

    Args:
        database, storage: to belong together from now on.
        without_files: whether the folder may lack the files of every job that has registered some.

    Raises:
        ForeignStorage: it lacks them, as the folder of another machine does.
    """

    def change(session: Session) -> str:
        if not without_files:
            _refuse_without_files(session, storage)
        storage_id = storage.marker() or id_of(session) or new_id()
        session.execute(insert(session, models.Storage).values(_row(storage_id)).on_conflict_do_nothing())
        session.execute(update(models.Storage).values(storage_id=storage_id))
        storage.mark(storage_id)
        if (place := database.place()) is not None:
            storage.set_owner(place)
        return storage_id

    storage.id = None
    storage.id = database.write(change)
    return storage.id


def _refuse_without_files(session: Session, storage: Storage) -> None:
    registered = select(models.Checkpoint.job_id).where(models.Checkpoint.deleted_at.is_(None)).distinct()
    newest = list(session.execute(registered.order_by(models.Checkpoint.job_id.desc()).limit(_SAMPLE)).scalars())
    if newest and not any(next(storage.keys(job_id), None) for job_id in newest):
        raise ForeignStorage(
            f"the database has registered files, but {storage.where} has none of them; "
            "bring back the storage that holds them, or copy its files; only if they are lost, add --without-files"
        )


def _check_owner(database: Database, storage: Storage) -> None:
    """Note the SQLite file that the storage belongs to.

    A copy of that file has the same ids.  It must not share the storage, where it would remove files that it does not
    know.

    Raises:
        ForeignStorage: the database is a copy, and the original is still there.
    """
    place, owner = database.place(), storage.owner()
    if place is None or place == owner:
        return
    if owner is not None and _is_there(owner):
        storage.id = ""  # no folder is accepted
        raise ForeignStorage(
            f"{storage.where} belongs to the database {owner.partition(' ')[2]}, and "
            f"this database is a copy of it; give the copy a copy of the files ({storage.setting}); "
            "if the copy replaces the original, run `python -m jobs adopt-storage`"
        )
    with suppress(OSError):  # such as a full disk; noted by a later call
        storage.set_owner(place)


def _is_there(place: str) -> bool:
    inode, _, path = place.partition(" ")
    try:
        return str(Path(path).stat().st_ino) == inode
    except OSError:
        return False


def _introduce(session: Session, storage: Storage) -> str:
    """Insert the id of the storage, and give it one if it has none; a concurrent call waits for the row and reads it.

    A marker without files is what a crash between the two leaves.
    """
    marker = storage.marker()
    storage_id = marker or new_id()
    row = insert(session, models.Storage).values(_row(storage_id)).on_conflict_do_nothing()
    if session.execute(row.returning(models.Storage.name)).scalar_one_or_none() is not None:
        _refuse_strangers(session, storage, marker)
        if marker is None:
            storage.mark(storage_id)
    expected = id_of(session)
    assert expected is not None
    return expected


def _refuse_strangers(session: Session, storage: Storage, marker: str | None) -> None:
    if marker is not None and not storage.is_folder:
        raise ForeignStorage(f"{storage.where} is another service's storage; name another prefix; {_ADOPT}")
    job_ids = list(islice(_jobs_with_files(storage), _SAMPLE))
    if not job_ids:
        registered = select(models.Checkpoint.id).where(models.Checkpoint.deleted_at.is_(None)).limit(1)
        if session.execute(registered).first() is not None:
            raise ForeignStorage(
                f"the database has registered files, but {storage.where} is absent or empty; check {storage.setting}"
            )
        return
    are_known = session.execute(select(models.Job.id).where(models.Job.id.in_(job_ids)).limit(1)).first() is not None
    if marker is not None or not are_known:
        raise ForeignStorage(
            f"{storage.where} holds files of another database; set WCL_DATABASE_URL to that database, or "
            f"{storage.setting} to another place; {_ADOPT}"
        )


def _jobs_with_files(storage: Storage) -> Iterator[str]:
    """Return the ids of the jobs with files `JOB/ATTEMPT/NAME`; other folders, such as `lost+found`, are no jobs."""
    return (
        job_id
        for job_id in storage.job_ids()
        if any(AttemptRef.is_folder(key.split("/")[1]) for key in storage.keys(job_id))
    )


def id_of(session: Session) -> str | None:
    """Return the id of the database's storage; None before `connect`."""
    statement = select(models.Storage.storage_id).where(models.Storage.name == _NAME)
    return session.execute(statement).scalar_one_or_none()


def _row(storage_id: str) -> dict[str, str]:
    return {"name": _NAME, "storage_id": storage_id}
