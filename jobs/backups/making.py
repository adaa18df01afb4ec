"""Making a backup while jobs run.

    the storage keeps its files ── dump ── files that the dump names ── manifest ── the storage removes files again

The database comes first: files that are registered later are not needed, and a file that the dump names cannot vanish
until it is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, func, select

from jobs import schema, storage_id, weights
from jobs.backups.backup_folder import BackupError, BackupFolder, Flaw, Manifest
from jobs.backups.dumps import dumped
from jobs.checked_files import BadFile
from jobs.database import Database
from jobs.models import Base
from jobs.storage import LocalStorage, OutsideStorage, Storage
from wcl_core.failpoints import failpoint
from wcl_core.version import VERSION

_COUNTED = ("jobs", "attempts", "events", "checkpoints", "artifacts", "weights", "points", "point_blocks")


@dataclass(frozen=True)
class Registered:
    """A file that a row names.

    Attributes:
        checkpoint_id: of a checkpoint, whose row can carry a mark.
        mark: why the service makes nothing from the file; None for a file that was last seen intact.
    """

    storage_key: str
    sha256: str
    size: int
    checkpoint_id: str | None = None
    mark: str | None = None


@dataclass(frozen=True)
class Made:
    """The result of a backup.

    Attributes:
        num_copied, copied_bytes: of files that the folder did not have.
        num_kept: files that earlier backups have brought.
        new_flaws: of files that are damaged or missing, and that no row is marked for.
    """

    manifest: Manifest
    num_copied: int
    copied_bytes: int
    num_kept: int
    new_flaws: tuple[Flaw, ...]


def make_backup(database: Database, storage: Storage, root: Path, keep: int | None = None) -> Made:
    """Write a backup.

    Args:
        database, storage: the service; other processes may use them meanwhile.
        root: the folder of backups.
        keep: number of backups that stay, with the new one; None removes none.

    Raises:
        BackupError: the folder cannot be used, holds backups of another service, or a program is absent.
        Unusable: the schema is not this version's.
        ForeignStorage, StorageUnavailable: the storage is absent, or not the database's.
        OSError: the disk of the backup is full; the interrupted backup is removed by the next one.
    """
    if (problem := schema.awaited(database)) is not None:
        raise schema.Unusable(problem)
    if isinstance(storage, LocalStorage) and root.resolve().is_relative_to(storage.root.resolve()):
        raise BackupError(f"{root} lies in the storage folder itself; choose a folder on another disk")
    storage_id.connect(database, storage)
    assert storage.id is not None
    backups = BackupFolder(root)
    with backups.locked():
        _refuse_others(backups, storage.id)
        folder = backups.new()
        with storage.keeps_files():
            with dumped(database, folder) as (dump, connection):
                files, counts = registered(connection), _counts(connection)
                revision = schema.revision(connection)
            failpoint("backup.after_dump")
            held, flaws, num_copied, copied_bytes = _copy(backups, storage, files)
        failpoint("backup.before_manifest")
        manifest = Manifest(
            name=folder.name,
            version=VERSION,
            revision=revision or "",
            storage_id=storage.id,
            database=dump,
            counts=counts,
            files=held,
            flaws=tuple(flaws.values()),
        )
        backups.finish(manifest)
        if keep is not None:
            backups.prune(keep)
    marked = {file.storage_key for file in files if file.mark is not None}
    new = tuple(flaw for key, flaw in flaws.items() if key not in marked)
    return Made(manifest, num_copied, copied_bytes, len(held) - num_copied, new)


def registered(connection: Connection) -> list[Registered]:
    """Return the files that a database names, also those of deleted jobs, which can be restored."""
    tables = Base.metadata.tables  # of tables in place of classes, whose hidden rows a statement does not see
    rows = tables["checkpoints"].c
    columns = (rows.storage_key, rows.sha256, rows.size, rows.id, rows.damaged_at, rows.missing_at)
    files = [
        Registered(key, sha256, size, id, "damaged" if damaged_at is not None else "missing" if missing_at else None)
        for key, sha256, size, id, damaged_at, missing_at in connection.execute(
            select(*columns).where(rows.deleted_at.is_(None))
        )
    ]
    artifacts = tables["artifacts"].c
    statement = select(artifacts.storage_key, artifacts.sha256, artifacts.size)
    files += [Registered(*row) for row in connection.execute(statement)]
    imported = tables["weights"].c
    for row in connection.execute(select(imported.sha256, imported.size)):
        files.append(Registered(weights.storage_key(row.sha256), row.sha256, row.size))
    return files


def _copy(
    backups: BackupFolder, storage: Storage, files: list[Registered]
) -> tuple[dict[str, int], dict[str, Flaw], int, int]:
    """Copy the files that the folder does not have; return sizes by digest, flaws by key, and what was copied."""
    held: dict[str, int] = {}
    bad: dict[str, tuple[Registered, BadFile | OutsideStorage]] = {}
    num_copied = copied_bytes = 0
    for file in files:
        if file.sha256 in held:
            continue
        try:
            if backups.add(partial(storage.read, file.storage_key), file.sha256, file.size):
                num_copied, copied_bytes = num_copied + 1, copied_bytes + file.size
            held[file.sha256] = file.size
        except (BadFile, OutsideStorage) as error:
            bad[file.storage_key] = file, error
    flaws = {
        key: Flaw(storage_key=key, reason=str(error)) for key, (file, error) in bad.items() if file.sha256 not in held
    }
    return held, flaws, num_copied, copied_bytes


def _counts(connection: Connection) -> dict[str, int]:
    tables = Base.metadata.tables
    return {name: connection.execute(select(func.count()).select_from(tables[name])).scalar_one() for name in _COUNTED}


def _refuse_others(backups: BackupFolder, own_id: str) -> None:
    """Refuse a folder with backups of another service: the newest one would not be this service's."""
    for name in backups.names()[-1:]:
        if backups.read(name).storage_id != own_id:
            raise BackupError(
                f"{backups.root} holds backups of another service, or of this copy's original; choose another one"
            )
