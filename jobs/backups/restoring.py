"""Restoring a backup: as a copy that touches nothing of the original, or in the original's place.

    checks ── dump ── migrations ── [a copy: its own identity] ── files ── the storage's id

The dump is loaded whole or not at all.  The storage gets its id last.  Until then no server starts on the restored
database and no worker takes a job, so a restore that was interrupted does nothing; the same command continues it.

A copy keeps jobs, results and keys.  It gets another storage id, its webhooks are disabled, its open attempts end, and
the original's workers are no longer its workers.  In the original's place everything stays, and the fence rejects
attempts that the backup does not hold.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from jobs import activity, damage, schema, storage_id, transitions, workers
from jobs.attempts import AttemptRef
from jobs.backups import dumps
from jobs.backups.backup_folder import BackupError, BackupFolder, Manifest
from jobs.backups.making import Registered, registered
from jobs.checked_files import BadFile
from jobs.database import Database, insert, new_id, now_ms
from jobs.models import Attempt, Webhook, WebhookDelivery, Worker
from jobs.models import Storage as StorageRow
from jobs.settings import Settings
from jobs.status import Reason
from jobs.storage import ForeignStorage, OutsideStorage, Storage, open_storage
from jobs.webhooks import subscriptions
from wcl_core.failpoints import failpoint
from wcl_core.files import write_bytes

_STATE = "restoring"  # the file in the data folder that names the backup while it is restored
_DISABLED = "this service is a copy that was restored from a backup; enable the webhook if the copy may send messages"


@dataclass(frozen=True)
class Restored:
    """The result of a restore.

    Attributes:
        num_copied, copied_bytes: of files that were brought from the backup.
        num_present: files that were in the storage as registered.
        missing: keys of files that neither the storage nor the backups have as registered.
        aside: where the former SQLite database is; None if there was none.
    """

    num_copied: int
    copied_bytes: int
    num_present: int
    missing: tuple[str, ...]
    aside: Path | None = None


def restore(settings: Settings, backups: BackupFolder, manifest: Manifest, *, replace: bool = False) -> Restored:
    """Restore a backup into the database and the data folder of the settings.

    Args:
        settings: of the restored service.
        backups, manifest: the backup.
        replace: restore in the original's place, rather than a copy beside it.

    Raises:
        BackupError: the backup is damaged or of a newer version, or the target is not empty or not the original's.
        ForeignStorage: the storage folder is another one's.
    """
    if not schema.is_supported(manifest.revision):
        raise BackupError(
            f"the backup {manifest.name} was made by version {manifest.version}, whose schema {manifest.revision} this "
            "version does not know; install that version"
        )
    dump = backups.dump_of(manifest)
    storage = open_storage(settings)
    with _unused(settings), _opened(settings) as database:
        continues = _continues(settings, manifest, replace)
        _check_storage(storage, manifest, replace, continues)
        aside = None
        if not dumps.is_empty(database) and not continues:
            aside = _aside(database, manifest, replace)
        write_bytes(settings.data_dir / _STATE, _state(manifest, replace))
        storage.unmark()  # no process uses the storage until it has its id again
        if dumps.is_empty(database):
            dumps.load(database, dump, manifest.database)
        failpoint("restore.after_dump")
        database.migrate()
        if not replace:
            database.write(lambda session: _detach(session, manifest))
        failpoint("restore.before_files")
        result = _bring_files(database, storage, backups)
        failpoint("restore.before_id")
        storage_id.adopt(database, storage)
        (settings.data_dir / _STATE).unlink()
    return Restored(*result, aside)


def restore_files(settings: Settings, backups: BackupFolder) -> Restored:
    """Bring the files that the present database names and its storage lacks; the service may run.

    A file comes from any backup of the folder.  Checkpoints whose file no backup has are marked as missing.

    Raises:
        ForeignStorage: the storage folder is another one's.
        Unusable: there is no database, or its schema is not this version's.
    """
    storage = open_storage(settings)
    if (absence := schema.absence(settings)) is not None:
        raise schema.Unusable(absence)
    with _opened(settings) as database:
        if (problem := schema.awaited(database)) is not None:
            raise schema.Unusable(problem)
        with database.read() as session:
            own_id = session.execute(select(StorageRow.storage_id)).scalar_one_or_none()
        if storage.marker() not in (None, own_id) or (storage.marker() is None and _has_jobs(storage)):
            raise ForeignStorage(f"{storage.where} is the storage of another database; check {storage.setting}")
        result = _bring_files(database, storage, backups)
        storage_id.adopt(database, storage)
        restored = Restored(*result)
        facts = {"folder": str(backups.root), "files": restored.num_copied, "size": restored.copied_bytes}
        by = activity.OPERATOR
        database.write(lambda session: activity.note(session, "backup.restore", "backups", by=by, **facts))
    return restored


# --- the target ------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(settings: Settings) -> Iterator[Database]:
    database = Database(settings.resolved_database_url)
    try:
        yield database
    finally:
        database.dispose()


@contextmanager
def _unused(settings: Settings) -> Iterator[None]:
    """Hold the data folder as `wcl up` does.

    Raises:
        BackupError: a service uses it.
    """
    advice = "stop it first, or set WCL_DATA_DIR to an empty folder for a copy"
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        file = (settings.data_dir / "up.lock").open("ab")
    except OSError as error:
        raise BackupError(f"the data folder {settings.data_dir} cannot be used: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BackupError(f"a service runs on {settings.data_dir}; {advice}") from error
        with suppress(OSError, ValueError, TypeError):
            pid = json.loads((settings.data_dir / "server.json").read_bytes())["pid"]
            with suppress(psutil.Error):
                if "api" in psutil.Process(pid).cmdline():
                    raise BackupError(f"a server (process {pid}) runs on {settings.data_dir}; {advice}")
        yield


def _continues(settings: Settings, manifest: Manifest, replace: bool) -> bool:
    """Return whether an interrupted restore of this backup is continued.

    Raises:
        BackupError: another restore was interrupted here.
    """
    try:
        state = (settings.data_dir / _STATE).read_bytes()
    except FileNotFoundError:
        return False
    if state == _state(manifest, replace):
        return True
    name, mode = state.decode(errors="replace").split()[:2]
    raise BackupError(
        f"an interrupted restore is here: repeat `wcl restore DIR --backup {name}"
        f"{' --replace' * (mode == 'replace')}`, or name an empty database and an empty data folder"
    )


def _state(manifest: Manifest, replace: bool) -> bytes:
    return f"{manifest.name} {'replace' if replace else 'copy'} {manifest.storage_id}\n".encode()


def _check_storage(storage: Storage, manifest: Manifest, replace: bool, continues: bool) -> None:
    marker = storage.marker()
    if marker is None and (continues or not _has_jobs(storage)):
        return
    if marker == manifest.storage_id and replace:
        return
    if marker == manifest.storage_id:
        raise BackupError(
            f"{storage.where} is the storage of the original. Set {storage.setting} to an empty place for a copy "
            "beside it, or add --replace if the restored service takes its place"
        )
    raise BackupError(f"{storage.where} holds files of another service; set {storage.setting} to an empty place")


def _has_jobs(storage: Storage) -> bool:
    return any(any(True for _ in storage.keys(job_id)) for job_id in storage.job_ids())


def _aside(database: Database, manifest: Manifest, replace: bool) -> Path:
    """Give a SQLite database that is replaced another name, and return its place.

    Raises:
        BackupError: it may not be replaced.
    """
    file = dumps.sqlite_file(database)
    if file is None or not replace:
        how = "an empty one, such as `createdb` makes" if file is None else "an empty data folder (WCL_DATA_DIR)"
        advice = "" if file is None else ", or add --replace if the restored service takes the original's place"
        raise BackupError(f"the database holds tables already, and a restore overwrites none; name {how}{advice}")
    its = None
    with suppress(DBAPIError), database.engine.connect() as connection:  # it may be damaged, or older
        its = connection.execute(select(StorageRow.__table__.c.storage_id)).scalar_one_or_none()
    if its not in (None, manifest.storage_id):
        raise BackupError(f"{file} is the database of another service; set WCL_DATA_DIR or WCL_DATABASE_URL")
    database.dispose()
    aside = file.with_name(f"{file.name}.before-{manifest.name}")
    number = 1
    while aside.exists():
        number += 1
        aside = file.with_name(f"{file.name}.before-{manifest.name}-{number}")
    file.rename(aside)
    return aside


def _detach(session: Session, manifest: Manifest) -> None:
    """Make a restored database a copy of its own; does nothing when repeated."""
    statement = select(StorageRow.storage_id).with_for_update()
    if session.execute(statement).scalar_one_or_none() not in (None, manifest.storage_id):
        return
    row = {"name": "checkpoints", "storage_id": new_id()}
    session.execute(insert(session, StorageRow).values(row).on_conflict_do_nothing())
    session.execute(update(StorageRow).values(storage_id=row["storage_id"]))
    for webhook_id in session.execute(select(Webhook.id)).scalars().all():
        subscriptions.disable(session, webhook_id, _DISABLED)
    pending = update(WebhookDelivery).where(WebhookDelivery.ended_at.is_(None))
    session.execute(pending.values(state="failed", ended_at=now_ms(), last_error=_DISABLED))
    attempts = session.execute(
        select(Attempt.job_id, Attempt.number, Attempt.token).where(Attempt.ended_at.is_(None))
    ).all()
    for job_id, number, token in attempts:
        message = "the attempt belongs to the original of this copy"
        transitions.end_attempt(session, AttemptRef(job_id, number, token), "drained", Reason.WORKER_STOPPED, message)
    for worker_id in session.execute(select(Worker.id).where(Worker.is_live)).scalars().all():
        workers.stop(session, worker_id)


# --- files -----------------------------------------------------------------------------------------------------------


def _bring_files(database: Database, storage: Storage, backups: BackupFolder) -> tuple[int, int, int, tuple[str, ...]]:
    """Bring the files that a database names, and set or take back their marks; the storage needs no id yet."""
    with database.engine.connect() as connection:
        files = registered(connection)
    num_copied = copied_bytes = num_present = 0
    missing = []
    for file in files:
        flaw: BadFile | None = None
        try:
            if storage.bring(partial(backups.open, file.sha256), file.storage_key, file.sha256, file.size):
                num_copied, copied_bytes = num_copied + 1, copied_bytes + file.size
            else:
                num_present += 1
        except OutsideStorage:
            missing.append(file.storage_key)
            continue
        except BadFile as error:
            flaw = error
            missing.append(file.storage_key)
        _note(database, file, flaw)
    return num_copied, copied_bytes, num_present, tuple(missing)


def _note(database: Database, file: Registered, flaw: BadFile | None) -> None:
    if file.checkpoint_id is not None and (flaw is not None or file.mark is not None):
        damage.note(database, file.checkpoint_id, flaw)
