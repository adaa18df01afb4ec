"""Backups and their restore, on both databases: consistent while jobs run, whole or not at all, and a copy apart."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update

from jobs import backups, checkpoints, damage, queries, search, storage_id, submission, workers
from jobs.__main__ import main
from jobs.audit import audit
from jobs.backups import BackupError, BackupFolder, dumps, making
from jobs.database import Database
from jobs.errors import RecordsMissing, Superseded
from jobs.models import Activity, Attempt, AttemptDevice, Checkpoint, Job, Webhook, WebhookDelivery, Worker
from jobs.settings import Settings
from jobs.storage import MARKER, ForeignStorage, KeptFiles, LocalStorage
from tests import servers
from tests.jobs import rows
from worker.garbage import collect_garbage

ORIGINAL_ID = "storage id of the original"


class Service:
    """A database and its storage, with one running job."""

    def __init__(self, database: Database, data_dir: Path) -> None:
        self.database, self.data_dir = database, data_dir
        self.settings = Settings(data_dir=data_dir, database_url=database.engine.url.render_as_string(False))
        self.storage = LocalStorage(self.settings.checkpoints_dir)
        storage_id.connect(database, self.storage)
        rows.add_dataset(database)
        facts = rows.worker(gpus=1)
        database.write(lambda session: workers.register(session, facts, 1, []))
        rows.submit(database, gpus=1)
        self.run = rows.Run(database, rows.claim(database, facts))
        self.run.deliver(rows.started())

    def checkpoint(self, step: int) -> Path:
        """Store and register a checkpoint of the running job."""
        content = f"state of step {step}, {self.run.attempt.token}".encode()
        key = f"{self.run.attempt.folder}/step-{step}.safetensors"
        place = self.storage.root / key
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        self.run.deliver(rows.checkpoint(step, digest) | {"path": key, "size": len(content)})
        return place


@pytest.fixture
def service(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    if database.engine.dialect.name == "postgresql":
        monkeypatch.setenv("PATH", str(servers.find_program("pg_dump").parent), prepend=os.pathsep)
    return Service(database, tmp_path)


@pytest.fixture
def elsewhere(service: Service, tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    """Return settings with an empty database and an empty data folder."""
    if service.database.engine.dialect.name == "sqlite":
        return Settings(data_dir=tmp_path / "elsewhere", database_url=None)
    url: str = request.getfixturevalue("postgres_url")
    return Settings(data_dir=tmp_path / "elsewhere", database_url=url)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> BackupFolder:
    return BackupFolder(tmp_path_factory.mktemp("backups") / "of the service")


def back_up(service: Service, folder: BackupFolder, keep: int | None = None) -> making.Made:
    return backups.make_backup(service.database, service.storage, folder.root, keep)


def restored(settings: Settings, folder: BackupFolder, *, replace: bool = False) -> tuple[Database, LocalStorage]:
    backups.restore(settings, folder, folder.read(), replace=replace)
    database, storage = Database(settings.resolved_database_url), LocalStorage(settings.checkpoints_dir)
    storage_id.connect(database, storage)
    return database, storage


def every(database: Database, model: type[Any]) -> list[Any]:
    with database.read() as session:
        return list(session.execute(select(model).order_by(*model.__table__.primary_key.columns)).scalars())


def only(database: Database, model: type[Any]) -> Any:
    (row,) = every(database, model)
    return row


# --- what a backup holds ---------------------------------------------------------------------------------------------


def test_files_of_earlier_backups_are_not_copied_again(service: Service, folder: BackupFolder) -> None:
    service.checkpoint(1)
    first = back_up(service, folder)
    stamp = next((folder.root / "files").glob("*/*")).stat()
    service.checkpoint(2)

    second = back_up(service, folder)

    assert (first.num_copied, second.num_copied, second.num_kept) == (1, 1, 1)
    assert (first.new_flaws, second.new_flaws) == ((), ())
    assert folder.place(next(iter(first.manifest.files))).stat() == stamp
    assert second.manifest.counts["checkpoints"] == 2
    assert second.manifest.storage_id == service.storage.id
    assert list(folder.flaws(second.manifest)) == []


def test_no_file_that_the_dump_names_is_removed_before_it_is_copied(
    service: Service, folder: BackupFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between dump and copy the checkpoint expires, its job is purged, and garbage is collected."""
    place = service.checkpoint(1)

    def remove(name: str) -> None:
        if name == "backup.after_dump":
            gone = update(Checkpoint).values(deleted_at=1)
            service.database.write(lambda session: session.execute(gone) and None)
            collect_garbage(service.database, service.storage, [service.run.job_id])
            with pytest.raises(KeptFiles):
                service.storage.delete_job(service.run.job_id)

    monkeypatch.setattr(making, "failpoint", remove)

    backup = back_up(service, folder)

    assert backup.manifest.flaws == ()
    assert list(folder.flaws(backup.manifest)) == []
    assert place.exists()
    collect_garbage(service.database, service.storage, [service.run.job_id])
    assert not place.exists(), "it stays garbage for the next collection"


def test_a_backup_while_others_write_is_one_state(service: Service, folder: BackupFolder) -> None:
    """Each transaction adds a job with its event; a mixture of two states would have one without the other."""
    stop = threading.Event()

    def write() -> None:
        new = rows.new_job()
        while not stop.is_set():
            service.database.write(lambda session: submission.submit(session, new).id)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        three = [back_up(service, folder) for _ in range(3)]
    finally:
        stop.set()
        writer.join()

    counts = [each.manifest.counts for each in three]
    assert counts[0]["jobs"] < counts[-1]["jobs"], "the writer wrote meanwhile"
    assert [each["events"] - each["jobs"] for each in counts] == [counts[0]["events"] - counts[0]["jobs"]] * 3


def test_a_damaged_file_is_not_in_the_backup_and_is_named(service: Service, folder: BackupFolder) -> None:
    service.checkpoint(1).write_bytes(b"other bytes")
    service.checkpoint(2).unlink()
    service.checkpoint(3)

    backup = back_up(service, folder)

    assert ["damaged" in flaw.reason or "missing" in flaw.reason for flaw in backup.new_flaws] == [True, True]
    assert len(backup.manifest.files) == 1
    first = every(service.database, Checkpoint)[0].id
    damage.verify(service.database, service.storage, first)
    assert len(back_up(service, folder).new_flaws) == 1, "the other one is marked"


def test_old_backups_are_removed_with_the_files_that_no_other_one_names(service: Service, folder: BackupFolder) -> None:
    service.checkpoint(1)
    first = back_up(service, folder)
    service.database.write(lambda session: session.execute(update(Checkpoint).values(deleted_at=1)) and None)
    service.checkpoint(2)

    second = back_up(service, folder, keep=1)

    assert folder.names() == [second.manifest.name]
    assert not folder.place(next(iter(first.manifest.files))).exists()
    assert list(folder.flaws(second.manifest)) == []


# --- interrupted, damaged, foreign -----------------------------------------------------------------------------------


class Stopped(Exception):  # noqa: N818 (as KeyboardInterrupt)
    """The process ends here."""


def stop_at(place: str) -> Any:
    def failpoint(name: str) -> None:
        if name == place:
            raise Stopped

    return failpoint


@pytest.mark.parametrize("place", ["backup.after_dump", "backup.before_manifest"])
def test_an_interrupted_backup_is_never_restored_and_the_next_one_removes_it(
    service: Service, folder: BackupFolder, elsewhere: Settings, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    service.checkpoint(1)
    with monkeypatch.context() as stopped:
        stopped.setattr(making, "failpoint", stop_at(place))
        with pytest.raises(Stopped):
            back_up(service, folder)
    (interrupted,) = (path.name for path in folder.root.glob("2*"))

    assert folder.names() == []
    with pytest.raises(BackupError, match="no complete backup"):
        folder.read()
    with pytest.raises(BackupError, match="was interrupted"):
        folder.read(interrupted)
    backup = back_up(service, folder)
    assert [path.name for path in folder.root.glob("2*")] == [backup.manifest.name]


@pytest.mark.parametrize("part", ["dump", "file", "manifest"])
def test_a_damaged_backup_is_found_by_its_digests(
    service: Service, folder: BackupFolder, elsewhere: Settings, part: str
) -> None:
    service.checkpoint(1)
    manifest = back_up(service, folder).manifest
    place = {
        "dump": folder.root / manifest.name / manifest.database.name,
        "file": folder.place(next(iter(manifest.files))),
        "manifest": folder.root / manifest.name / "manifest.json",
    }[part]
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 0xFF
    place.write_bytes(bytes(content))

    if part == "file":
        (flaw,) = folder.flaws(manifest)
        assert "digest differs" in flaw
    else:
        with pytest.raises(BackupError, match="damaged"):
            backups.restore(elsewhere, folder, folder.read())
        assert not elsewhere.checkpoints_dir.exists()


@pytest.mark.parametrize(
    ("replace", "place"),
    [(False, "restore.after_dump"), (False, "restore.before_id"), (True, "restore.before_files")],
)
def test_an_interrupted_restore_starts_nothing_and_is_continued(
    service: Service,
    folder: BackupFolder,
    elsewhere: Settings,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    replace: bool,
) -> None:
    service.checkpoint(1)
    back_up(service, folder)
    with monkeypatch.context() as stopped:
        stopped.setattr(backups.restoring, "failpoint", stop_at(place))
        with pytest.raises(Stopped):
            backups.restore(elsewhere, folder, folder.read(), replace=replace)

    database = Database(elsewhere.resolved_database_url)
    with pytest.raises(ForeignStorage):
        storage_id.connect(database, LocalStorage(elsewhere.checkpoints_dir))
    with pytest.raises(BackupError, match="interrupted restore is here"):
        backups.restore(elsewhere, folder, folder.read(), replace=not replace)
    database.dispose()
    database, storage = restored(elsewhere, folder, replace=replace)
    assert audit(database, storage).findings == []
    assert (storage.id == service.storage.id) is replace
    database.dispose()


def test_a_restore_overwrites_nothing(service: Service, folder: BackupFolder, elsewhere: Settings) -> None:
    service.checkpoint(1)
    back_up(service, folder)

    with pytest.raises(BackupError, match="--replace|holds tables already"):
        backups.restore(service.settings, folder, folder.read())
    shutil.copytree(service.storage.root, elsewhere.checkpoints_dir)
    with pytest.raises(BackupError, match="storage of the original"):
        backups.restore(elsewhere, folder, folder.read())
    other = LocalStorage(elsewhere.data_dir / "other" / "checkpoints")
    (other.root / "job" / "1").mkdir(parents=True)
    (other.root / "job" / "1" / "a").write_bytes(b"theirs")
    there = elsewhere.model_copy(update={"data_dir": elsewhere.data_dir / "other"})
    with pytest.raises(BackupError, match="another service"):
        backups.restore(there, folder, folder.read(), replace=True)
    assert (other.root / "job" / "1" / "a").read_bytes() == b"theirs"
    assert service.storage.marker() == service.storage.id


def test_backups_of_another_service_do_not_mix(service: Service, folder: BackupFolder, elsewhere: Settings) -> None:
    service.checkpoint(1)
    back_up(service, folder)
    database, storage = restored(elsewhere, folder)

    with pytest.raises(BackupError, match="another service"):
        backups.make_backup(database, storage, folder.root)
    database.dispose()


def test_a_backup_of_a_newer_version_is_refused(service: Service, folder: BackupFolder, elsewhere: Settings) -> None:
    manifest = back_up(service, folder).manifest.model_copy(update={"revision": "9999", "version": "9.1"})

    with pytest.raises(BackupError, match=r"version 9\.1"):
        backups.restore(elsewhere, folder, manifest)
    assert not elsewhere.data_dir.exists()


# --- a copy ----------------------------------------------------------------------------------------------------------


def test_a_copy_has_all_that_the_original_has_and_touches_nothing_of_it(
    service: Service, folder: BackupFolder, elsewhere: Settings
) -> None:
    search.build(service.database)
    service.checkpoint(1)
    service.database.write(_add_webhook)
    back_up(service, folder)
    if service.database.engine.dialect.name == "postgresql":  # other tests use this database, too
        service.database.write(lambda session: session.execute(text("DROP EXTENSION pg_trgm CASCADE")))

    database, storage = restored(elsewhere, folder)

    job = only(database, Job)
    with database.read() as session:
        assert len(queries.list_jobs(session, q=job.id[2:-2]).items) == 1
    assert (job.id, job.status, job.failures) == (service.run.job_id, "queued", 0)
    assert only(database, Attempt).ended_at is not None
    assert only(database, AttemptDevice).released_at is not None
    assert [row.is_live for row in every(database, Worker)] == [False]
    assert only(database, Webhook).disabled_at is not None
    assert only(database, WebhookDelivery).state == "failed"
    assert storage.id == storage.marker() != service.storage.id
    claim = rows.claim(database, rows.worker(id="00000000-0000-7000-8000-0000000000bb", gpus=1))
    assert claim.resume is not None
    assert claim.resume.step == 1
    assert storage.path(claim.resume.storage_key).read_bytes().startswith(b"state of step 1")
    assert audit(database, storage).findings == []

    assert rows.job(service.database, job.id).status == "running"
    service.run.deliver(rows.metrics(2, loss=1.0))
    assert only(service.database, Webhook).disabled_at is None
    assert only(service.database, WebhookDelivery).state == "pending"
    assert service.storage.marker() == service.storage.id
    database.dispose()


def _add_webhook(session: Any) -> None:
    values = {"id": "w", "name": "night", "url": "https://example.org", "format": "standard", "secret": "s"}
    session.add(Webhook(**values, events=["job.succeeded"], stalled_minutes=30))
    session.flush()
    delivery = {"id": "d", "webhook_id": "w", "subject": "s", "type": "t", "payload": {}, "state": "pending"}
    session.add(WebhookDelivery(**delivery, give_up_at=1 << 50))


# --- in the original's place -----------------------------------------------------------------------------------------


def in_place(service: Service, elsewhere: Settings) -> Settings:
    """Return the settings of a service in the original's place: its folder, and an empty PostgreSQL database."""
    if service.database.engine.dialect.name == "sqlite":
        service.database.dispose()
        return service.settings
    return elsewhere.model_copy(update={"data_dir": service.data_dir})


def test_last_nights_dump_with_todays_files(service: Service, folder: BackupFolder, elsewhere: Settings) -> None:
    """The worker of the original lives on: what the backup does not hold is fenced off, and the jobs resume."""
    service.checkpoint(1)
    rows.submit(service.database)
    back_up(service, folder)
    known, seq = service.run, service.run.seq
    service.checkpoint(2)
    other = rows.worker(id="00000000-0000-7000-8000-0000000000bb", gpus=1)
    unknown = rows.Run(service.database, rows.claim(service.database, other))
    unknown.deliver(rows.started())
    newest = service.checkpoint(3)
    settings = in_place(service, elsewhere)

    result = backups.restore(settings, folder, folder.read(), replace=True)

    assert (result.num_copied, result.num_present, result.missing) == (0, 1, ())
    assert newest.exists(), "files of today stay"
    database, storage = Database(settings.resolved_database_url), LocalStorage(settings.checkpoints_dir)
    storage_id.connect(database, storage)
    assert storage.id == service.storage.id
    known.database = unknown.database = database
    with pytest.raises(Superseded):
        unknown.deliver(rows.metrics(1, loss=1.0))
    with pytest.raises(RecordsMissing):
        known.deliver(rows.metrics(4, loss=1.0))
    known.seq = seq  # its spool has what the backup lacks
    known.deliver(rows.metrics(4, loss=1.0))
    again = rows.claim(database, other)
    assert (again.job_id, again.number) == (unknown.job_id, unknown.number)
    assert again.attempt.token != unknown.attempt.token
    known.end("drained")
    with database.read() as session:
        point = checkpoints.resume_point(session, known.job_id)
    assert point is not None
    assert point.step == 1
    assert audit(database, storage).findings == []
    database.dispose()


def test_todays_dump_with_last_nights_files(service: Service, folder: BackupFolder) -> None:
    """The storage is lost and the database is not: what no backup has is marked as missing, and jobs go on."""
    service.checkpoint(1)
    service.checkpoint(2)
    back_up(service, folder)
    service.checkpoint(3)
    shutil.rmtree(service.storage.root)

    result = backups.restore_files(service.settings, folder)

    (entry,) = (each for each in every(service.database, Activity) if each.action == "backup.restore")
    assert (entry.actor, (entry.details or {})["files"]) == ("an operator's command", 2)
    assert (result.num_copied, len(result.missing)) == (2, 1)
    storage_id.connect(service.database, service.storage)
    flaws = {row.step: row.flaw for row in every(service.database, Checkpoint)}
    assert flaws == {1: None, 2: None, 3: "missing"}
    service.run.end("drained")
    with service.database.read() as session:
        point = checkpoints.resume_point(session, service.run.job_id)
    assert point is not None
    assert point.step == 2
    assert audit(service.database, service.storage).findings == []


def test_files_that_are_damaged_are_mended_from_a_backup(service: Service, folder: BackupFolder) -> None:
    place = service.checkpoint(1)
    service.checkpoint(2)
    back_up(service, folder)
    good = place.read_bytes()
    place.write_bytes(b"x" * len(good))
    first = every(service.database, Checkpoint)[0].id
    assert damage.verify(service.database, service.storage, first) is not None

    result = backups.restore_files(service.settings, folder)

    assert (result.num_copied, result.num_present, result.missing) == (1, 1, ())
    assert place.read_bytes() == good
    assert [row.flaw for row in every(service.database, Checkpoint)] == [None, None]


def test_an_interrupted_restore_in_place_starts_nothing(
    sqlite_database: Database, tmp_path: Path, folder: BackupFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(sqlite_database, tmp_path)
    service.checkpoint(1)
    back_up(service, folder)
    sqlite_database.dispose()
    monkeypatch.setattr(backups.restoring, "failpoint", stop_at("restore.before_files"))

    with pytest.raises(Stopped):
        backups.restore(service.settings, folder, folder.read(), replace=True)

    with pytest.raises(ForeignStorage):
        storage_id.connect(sqlite_database, service.storage)


def test_a_replaced_sqlite_file_is_kept(sqlite_database: Database, tmp_path: Path, folder: BackupFolder) -> None:
    service = Service(sqlite_database, tmp_path)
    service.checkpoint(1)
    back_up(service, folder)
    rows.submit(sqlite_database)
    sqlite_database.dispose()

    result = backups.restore(service.settings, folder, folder.read(), replace=True)

    assert result.aside is not None
    before = Database(f"sqlite:///{result.aside}")
    assert len(every(before, Job)) == 2
    assert len(every(sqlite_database, Job)) == 1
    before.dispose()


# --- programs and commands -------------------------------------------------------------------------------------------


def test_a_program_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    old = [dumps.Program(13, "pg_dump (PostgreSQL) 13.1", Path("/old/pg_dump"))]
    newer = [dumps.Program(16, "", Path("/16/pg_dump")), dumps.Program(17, "", Path("/17/pg_dump"))]
    monkeypatch.setattr(dumps, "_WHERE", ())
    monkeypatch.setattr(dumps.shutil, "which", lambda _name: "pg_dump")
    monkeypatch.setattr(dumps, "_program", lambda _path: old[0])
    with pytest.raises(BackupError, match="only version 13 is here.*postgresql-client-15"):
        dumps.find_program("pg_dump", 15)

    programs = iter([*old, *newer, *old, *newer])
    monkeypatch.setattr(dumps, "_program", lambda _path: next(programs))
    monkeypatch.setattr(dumps.Path, "glob", lambda _self, _pattern: iter([Path("/16"), Path("/17")]))
    monkeypatch.setattr(dumps, "_WHERE", ("x",))
    monkeypatch.setattr(dumps.Path, "is_file", lambda _self: True)
    assert dumps.find_program("pg_dump", 15).major == 16


def test_the_commands_say_what_they_did(
    sqlite_database: Database, tmp_path: Path, folder: BackupFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    service = Service(sqlite_database, tmp_path)
    service.checkpoint(1)
    sqlite_database.dispose()
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("WCL_DATABASE_URL", raising=False)
        environment.setenv("WCL_DATA_DIR", str(tmp_path))
        assert main(["backup", str(folder.root), "--keep", "3"]) == 0
        assert "1 job;" in (printed := capsys.readouterr().out)
        assert "1 file, 1 of them copied now" in printed
        assert main(["restore", str(folder.root), "--check"]) == 0
        assert "1 file read, 0 of them damaged or missing" in capsys.readouterr().out
        assert main(["restore", str(folder.root)]) == 1
        assert "add --replace" in capsys.readouterr().err
        environment.setenv("WCL_DATA_DIR", str(tmp_path / "copy"))
        assert main(["restore", str(folder.root)]) == 0
        assert "it is a copy; its webhooks are disabled" in capsys.readouterr().out
        assert (tmp_path / "copy" / "checkpoints" / MARKER).exists()
        assert main(["restore", str(folder.root), "--files", "--check"]) == 1
