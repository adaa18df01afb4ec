"""A bucket as storage, against a real S3 server: the same promises as a folder, and what only a bucket can do wrong."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from jobs import backups, moving, storage_id, workers
from jobs.__main__ import main
from jobs.backups.making import registered
from jobs.bucket import BucketStorage, ahead
from jobs.checked_files import Damaged, Missing
from jobs.database import Database
from jobs.models import Worker
from jobs.settings import Settings
from jobs.storage import (
    ForeignStorage,
    KeptFiles,
    LocalStorage,
    OutsideStorage,
    Storage,
    StorageUnavailable,
    digest_of_open,
    open_storage,
)
from tests.jobs.test_backups import Service

SMALL = bytes(range(256)) * 5_000
LARGE = os.urandom(1 << 20) * 20  # three parts
KEY = "job-a/1-f0/step-1.safetensors"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def storage(bucket: dict[str, str], clock: Clock) -> BucketStorage:
    opened = BucketStorage(bucket["WCL_STORAGE_URL"], bucket["WCL_STORAGE_ENDPOINT"], clock)
    opened.mark("01a")
    opened.id = "01a"
    return opened


@pytest.fixture
def refusing(bucket_server: str) -> Iterator[Callable[[], None]]:
    """Yield a function after whose call the server knows no credentials."""
    yield lambda: authenticate(bucket_server, "0")
    authenticate(bucket_server, "inf")


def authenticate(server: str, num_requests_without: str) -> None:
    httpx.post(f"{server}/moto-api/reset-auth", content=num_requests_without.encode()).raise_for_status()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def stored(storage: BucketStorage, content: bytes, folder: Path, key: str = KEY) -> Path:
    source = folder / "written"
    source.write_bytes(content)
    storage.put(source, key)
    return source


def replace(storage: BucketStorage, key: str, content: bytes, **options: Any) -> None:
    """Write an object as another program does."""
    storage._request("put_object", Key=storage._key(key), Body=content, **options)


def requests_of(storage: BucketStorage) -> Counter[str]:
    """Return the requests from now on, by operation."""
    seen: Counter[str] = Counter()
    storage._connected().meta.events.register("before-call.s3", lambda model, **_: seen.update([model.name]))
    return seen


@pytest.mark.parametrize("content", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_a_file_comes_back_whole(storage: BucketStorage, content: bytes, tmp_path: Path) -> None:
    source = stored(storage, content, tmp_path)
    facts = (digest(content), len(content))

    storage.confirm(KEY, *facts)
    storage.verify(KEY, *facts)
    assert not source.exists()
    assert storage.fetch(KEY, *facts, tmp_path).read_bytes() == content
    with storage.open(KEY, *facts) as file:
        assert file.read() == content
        file.seek(len(content) // 2)
        assert file.read(1_000) == content[len(content) // 2 :][:1_000]
    assert list(storage.keys("job-a")) == [KEY]
    assert list(storage.job_ids()) == ["job-a"]


def test_put_may_be_repeated_and_equal_bytes_are_sent_once(storage: BucketStorage, tmp_path: Path) -> None:
    source = stored(storage, LARGE, tmp_path)
    seen = requests_of(storage)
    storage.put(source, KEY)  # it was moved before an interruption
    stored(storage, LARGE, tmp_path)  # it was written again before the first one was registered
    storage.write(io.BytesIO(LARGE), KEY)

    assert set(seen) == {"HeadObject"}
    with pytest.raises(FileNotFoundError):
        storage.put(source, "job-a/1-f0/other")


def test_a_killed_upload_goes_on_where_it_was(storage: BucketStorage, bucket: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "written").write_bytes(LARGE)
    code = f"""
import os, pathlib, signal
from jobs.bucket import BucketStorage
storage = BucketStorage({bucket["WCL_STORAGE_URL"]!r}, {bucket["WCL_STORAGE_ENDPOINT"]!r})
storage._connected().meta.events.register(
    "before-call.s3.CompleteMultipartUpload", lambda **_: os.kill(os.getpid(), signal.SIGKILL)
)
storage.put(pathlib.Path({str(tmp_path / "written")!r}), {KEY!r})
"""
    died = subprocess.run([sys.executable, "-c", code], timeout=120)
    assert died.returncode == -9
    assert list(storage.keys("job-a")) == [KEY], "the upload is listed for garbage collection"
    with pytest.raises(Missing):
        storage.verify(KEY, digest(LARGE), len(LARGE))
    seen = requests_of(storage)

    storage.put(tmp_path / "written", KEY)

    storage.verify(KEY, digest(LARGE), len(LARGE))
    assert (seen["UploadPart"], seen["CreateMultipartUpload"]) == (0, 0)


def begin(storage: BucketStorage, content: bytes, key: str = KEY) -> None:
    """Begin an upload, and leave it after its first part."""
    upload, _ = storage._open_upload(key, digest(content))
    target = {"Key": storage._key(key), "UploadId": upload, "PartNumber": 1}
    storage._request("upload_part", Body=content[: 8 << 20], **target)


def test_an_upload_of_other_bytes_is_not_continued(storage: BucketStorage, tmp_path: Path) -> None:
    begin(storage, LARGE[::-1])

    stored(storage, LARGE, tmp_path)

    storage.confirm(KEY, digest(LARGE), len(LARGE))
    storage.verify(KEY, digest(LARGE), len(LARGE))


def test_garbage_collection_aborts_uploads(storage: BucketStorage) -> None:
    begin(storage, LARGE)
    begin(storage, LARGE, "job-b/1-f0/step-1.safetensors")
    assert set(storage.job_ids()) == {"job-a", "job-b"}

    storage.delete(KEY)
    storage.delete_job("job-b")

    assert list(storage.job_ids()) == []
    assert list(storage._uploads("")) == []


def test_files_are_removed_by_key_and_by_job(storage: BucketStorage, tmp_path: Path) -> None:
    for key in (KEY, "job-a/2-f1/step-2.safetensors", "job-ab/1-f0/step-1.safetensors"):
        stored(storage, SMALL, tmp_path, key)

    storage.delete(KEY)
    storage.delete(KEY)
    assert list(storage.keys("job-a")) == ["job-a/2-f1/step-2.safetensors"]
    storage.delete_job("job-a")

    assert list(storage.job_ids()) == ["job-ab"]
    for key in ("../other", "/etc", "job-a/../../other"):
        with pytest.raises(OutsideStorage):
            storage.require(key)
    for job_id in ("", "job-a/1-f0", ".."):
        with pytest.raises(OutsideStorage):
            storage.delete_job(job_id)


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_other_bytes_are_detected(storage: BucketStorage, content: bytes, tmp_path: Path) -> None:
    """Other bytes of the same length, from a program that notes no digest, and from one that notes the right one."""
    stored(storage, content, tmp_path)
    facts = (digest(content), len(content))
    other = content[:-1] + bytes([content[-1] ^ 1])
    for options in ({}, {"Metadata": {"sha256": facts[0]}}):
        replace(storage, KEY, other, **options)

        with pytest.raises(Damaged, match="digest differs"):
            storage.verify(KEY, *facts)
        with pytest.raises(Damaged, match="digest differs"):
            storage.fetch(KEY, *facts, tmp_path)
        with pytest.raises(Damaged, match="digest differs"):
            storage.open(KEY, *facts).read()
    replace(storage, KEY, other, Metadata={"sha256": digest(other)})
    with pytest.raises(Damaged, match="other bytes were uploaded"):
        storage.open(KEY, *facts)
    replace(storage, KEY, content[:-1])
    with pytest.raises(Damaged, match="instead of"):
        storage.confirm(KEY, *facts)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("stored")] == []


def test_an_object_that_is_replaced_while_it_is_read_is_no_mixture(storage: BucketStorage, tmp_path: Path) -> None:
    content = LARGE * 2  # more parts than are on their way at once
    stored(storage, content, tmp_path)
    with storage.read(KEY) as file:
        assert file.read(10) == content[:10]
        replace(storage, KEY, content[::-1])
        with pytest.raises(StorageUnavailable, match="replaced"):
            digest_of_open(file)


def test_a_missing_file_is_not_a_missing_bucket(storage: BucketStorage, bucket_server: str) -> None:
    with pytest.raises(Missing):
        storage.verify(KEY, digest(SMALL), len(SMALL))
    with pytest.raises(FileNotFoundError):
        storage.require(KEY)
    gone = BucketStorage("s3://no-such-bucket", bucket_server)
    gone.id = "01a"
    for act in (lambda: gone.verify(KEY, digest(SMALL), 1), lambda: gone.require(KEY), gone.check):
        with pytest.raises(StorageUnavailable, match="does not exist"):
            act()
    storage.unmark()
    with pytest.raises(ForeignStorage, match="no object storage-id"):
        storage.require(KEY)


def test_a_bucket_belongs_to_one_service(
    storage: BucketStorage, bucket: dict[str, str], clock: Clock, sqlite_database: Database
) -> None:
    """Also before it has files: the second service would take the first one's bucket for its own."""
    second = BucketStorage(bucket["WCL_STORAGE_URL"], bucket["WCL_STORAGE_ENDPOINT"])
    with pytest.raises(ForeignStorage, match="another"):
        storage_id.connect(sqlite_database, second)
    with pytest.raises(ForeignStorage):
        second.mark("01b")
    storage.check()
    second.unmark()
    second.mark("01b")
    storage.check()  # compared a moment ago
    clock.now += 61
    with pytest.raises(ForeignStorage, match="01b"):
        storage.write(io.BytesIO(SMALL), KEY)
    second.id = None
    assert list(second.job_ids()) == []


def test_a_new_service_takes_an_empty_prefix(bucket: dict[str, str], sqlite_database: Database) -> None:
    first, second = (BucketStorage(bucket["WCL_STORAGE_URL"], bucket["WCL_STORAGE_ENDPOINT"]) for _ in range(2))
    storage_id.connect(sqlite_database, first)
    storage_id.connect(sqlite_database, second)
    assert first.id == second.id == first.marker() is not None


def test_refused_credentials_are_named_without_their_text(
    storage: BucketStorage, refusing: Callable[[], None], bucket_server: str, tmp_path: Path
) -> None:
    stored(storage, SMALL, tmp_path)
    source = tmp_path / "next"
    source.write_bytes(SMALL)
    refusing()

    for act in (lambda: storage.put(source, f"{KEY}-2"), lambda: storage.verify(KEY, digest(SMALL), len(SMALL))):
        with pytest.raises(StorageUnavailable, match=r"refuses the credentials \(\w+\)") as refused:
            act()
        assert "writes" not in str(refused.value)
    with pytest.raises(StorageUnavailable, match="refuses"):
        storage.check()  # at once, although the id was compared a moment ago
    authenticate(bucket_server, "inf")
    storage.put(source, f"{KEY}-2")
    storage.verify(f"{KEY}-2", digest(SMALL), len(SMALL))


def test_every_permission_is_tried_before_the_first_job(storage: BucketStorage) -> None:
    seen = requests_of(storage)
    storage.check()

    tried = {"PutObject", "GetObject", "ListObjectsV2", "DeleteObject", "CreateMultipartUpload"}
    assert tried | {"ListMultipartUploads", "ListParts", "AbortMultipartUpload"} == set(seen)
    assert list(storage._names("storage-probe")) == []
    seen.clear()
    storage.check()
    assert not seen, "once is enough"


def test_a_lock_of_a_backup_keeps_files(storage: BucketStorage, tmp_path: Path) -> None:
    stored(storage, SMALL, tmp_path)
    with storage.keeps_files():
        storage.delete(KEY)
        with pytest.raises(KeptFiles):
            storage.delete_job("job-a")
        storage.require(KEY)
    storage.delete(KEY)
    assert list(storage.keys("job-a")) == []


def test_a_link_needs_no_key(storage: BucketStorage, tmp_path: Path) -> None:
    stored(storage, LARGE, tmp_path)
    link = storage.link(KEY, "step-1.safetensors")
    assert link is not None
    assert "secret-of-the-bucket" not in link

    response = httpx.get(link, headers={"Range": "bytes=10-19"})

    assert (response.status_code, response.content) == (206, LARGE[10:20])
    assert response.headers["content-disposition"] == 'attachment; filename="step-1.safetensors"'


def test_results_come_in_order_and_the_first_error_ends_them() -> None:
    assert list(ahead(lambda number: number * 2, range(9), 4)) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    results = ahead(lambda number: 6 // (3 - number), range(9), 4)
    assert [next(results) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)


# --- moving, backups -------------------------------------------------------------------------------------------------


@pytest.fixture
def service(sqlite_database: Database, tmp_path: Path) -> Service:
    """Return a service with three checkpoints in its folder."""
    service = Service(sqlite_database, tmp_path / "data")
    for step in (1, 2, 3):
        service.checkpoint(step)
    return service


@pytest.fixture
def empty(bucket: dict[str, str]) -> BucketStorage:
    return BucketStorage(bucket["WCL_STORAGE_URL"], bucket["WCL_STORAGE_ENDPOINT"])


def stop_workers(database: Database) -> None:
    with database.read() as session:
        ids = session.execute(select(Worker.id)).scalars().all()
    for worker_id in ids:
        database.write(lambda session, worker_id=worker_id: workers.stop(session, worker_id))  # type: ignore[misc]


def all_verified(database: Database, storage: Storage) -> bool:
    with database.engine.connect() as connection:
        files = registered(connection)
    for file in files:
        storage.verify(file.storage_key, file.sha256, file.size)
    return len(files) == 3


def test_a_move_can_be_repeated_and_ends_without_workers(service: Service, empty: BucketStorage) -> None:
    database = service.database
    began = moving.move(database, service.storage, empty)
    assert (began.num_copied, began.num_present, len(began.workers)) == (3, 0, 1)
    assert service.storage.marker() is not None, "jobs go on where they were"
    assert empty.marker() is None
    stop_workers(database)

    moved = moving.move(database, service.storage, empty)

    assert (moved.num_copied, moved.num_present, moved.bad, moved.workers) == (0, 3, (), ())
    assert all_verified(database, empty)
    service.storage.id = empty.id
    with pytest.raises(ForeignStorage, match="no file storage-id"):
        service.storage.check()
    assert moving.move(database, service.storage, empty).num_copied == 0


def test_a_move_that_was_interrupted_late_goes_on_and_back(
    service: Service, empty: BucketStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "CHECKED_SECONDS", 0.0)
    stop_workers(service.database)
    service.storage.unmark()

    assert moving.move(service.database, service.storage, empty).num_copied == 3

    folder = LocalStorage(tmp_path / "other")
    assert moving.move(service.database, empty, folder).num_copied == 3
    storage_id.connect(service.database, folder)
    assert all_verified(service.database, folder)


def test_a_move_names_what_is_damaged(service: Service, empty: BucketStorage) -> None:
    stop_workers(service.database)
    bad, gone = service.checkpoint(4), service.checkpoint(5)
    bad.write_bytes(bad.read_bytes()[:-1] + b"!")
    gone.unlink()

    moved = moving.move(service.database, service.storage, empty)

    assert moved.num_copied == 3
    assert [key.rpartition("/")[2] for key in moved.bad] == ["step-4.safetensors", "step-5.safetensors"]


def test_a_move_takes_no_place_of_another_service(
    service: Service, empty: BucketStorage, storage: BucketStorage
) -> None:
    with pytest.raises(ForeignStorage, match="storage of another service"):
        moving.move(service.database, service.storage, empty)  # `storage` has marked it
    storage.write(io.BytesIO(SMALL), KEY)
    storage.unmark()
    with pytest.raises(ForeignStorage, match="files of another service"):
        moving.move(service.database, service.storage, empty)
    assert service.storage.marker() is not None


def test_the_command_moves_and_says_what_to_set(
    service: Service, bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WCL_DATA_DIR", str(service.data_dir))
    monkeypatch.setenv("WCL_DATABASE_URL", service.database.url)
    monkeypatch.setenv("WCL_STORAGE_ENDPOINT", bucket["WCL_STORAGE_ENDPOINT"])
    url = bucket["WCL_STORAGE_URL"]
    assert main(["move-storage", "http://no-bucket"]) == 1
    assert main(["move-storage", "folder"]) == 1
    assert main(["move-storage", url]) == 1
    output = capsys.readouterr()
    assert "expected s3://BUCKET/PREFIX" in output.err
    assert "3 files copied" in output.out
    assert "stop all servers and workers" in output.err
    stop_workers(service.database)

    assert main(["move-storage", url]) == 0

    assert f"set WCL_STORAGE_URL={url}" in capsys.readouterr().out
    monkeypatch.setenv("WCL_STORAGE_URL", url)
    assert main(["audit"]) == 0


def test_a_backup_of_a_bucket_has_its_files_and_is_restored_anywhere(
    service: Service, empty: BucketStorage, bucket: dict[str, str], tmp_path: Path
) -> None:
    stop_workers(service.database)
    moving.move(service.database, service.storage, empty)
    folder = backups.BackupFolder(tmp_path / "backups")

    made = backups.make_backup(service.database, empty, folder.root)
    again = backups.make_backup(service.database, empty, folder.root)

    assert (made.num_copied, again.num_copied, again.num_kept) == (3, 0, 3)
    assert list(folder.flaws(made.manifest)) == []
    other = {"storage_url": f"{bucket['WCL_STORAGE_URL']}-copy", "storage_endpoint": bucket["WCL_STORAGE_ENDPOINT"]}
    for name, settings in (("folder", {}), ("bucket", other)):
        copy = Settings.model_validate({"data_dir": tmp_path / name, **settings})
        assert backups.restore(copy, folder, folder.read()).num_copied == 3
        database, restored = Database(copy.resolved_database_url), open_storage(copy)
        storage_id.connect(database, restored)
        assert all_verified(database, restored)
        assert restored.id != empty.id
        database.dispose()
    original = {"data_dir": tmp_path / "third", **other, "storage_url": bucket["WCL_STORAGE_URL"]}
    with pytest.raises(backups.BackupError, match="storage of the original"):
        backups.restore(Settings.model_validate(original), folder, folder.read())
