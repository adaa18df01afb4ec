"""Files become visible whole: the writer itself, and each of its callers."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import pytest
import torch

pytest.importorskip("api", reason="the service is not here")

from api import __main__ as server
from api.rest import exports
from jobs import keys
from jobs.database import Database
from jobs.settings import Settings
from jobs.storage import LocalStorage
from tests.wcl_core import small
from tests.wcl_core.data.test_data import write_tree
from wcl_client.download import download
from wcl_client.errors import TransferError
from wcl_core import artifacts, attempt, checkpoint, export, files
from wcl_core.config import resolve_spec
from wcl_core.data import described, packing
from wcl_core.data.images import Description
from wcl_core.protocol import RUN_FILE, DatasetSource, Failure, RunFile
from wcl_core.reporter import MemoryReporter, NullReporter

OLD = b"the old content"


@dataclass
class Place:
    """Where a caller of the writer works.

    Attributes:
        folder: an empty folder.
        database: with tables and without rows.
        replace: the system's rename, which the tests replace by their own.
    """

    folder: Path
    database: Database
    replace: Callable[[Any, Any], None] = field(default=os.replace)

    @property
    def native(self) -> Path:
        """Write a native checkpoint beside the folder."""
        path = self.folder.parent / "native.safetensors"
        if not path.exists():
            facts = {"spec": resolve_spec(small.spec()), "step": 8, "epoch": 2}
            checkpoint.write(path, {"model/backbone.weight": torch.ones(3)}, facts)
        return path


Caller = Callable[[Place], Path]


def keep_artifact(place: Place) -> Path:
    artifacts.keep(MemoryReporter(), place.folder, "map.png", b"pixels")
    return place.folder / "artifacts" / f"{hashlib.sha256(b'pixels').hexdigest()[:16]}-map.png"


def leave_failure(place: Place) -> Path:
    path = place.folder / "failure-1.json"
    attempt._leave(path, Failure(outcome="failed", reason="out_of_memory", message="no memory is left"))
    return path


def write_checkpoint(place: Place) -> Path:
    return checkpoint.write(place.folder / "step-1.safetensors", {"model/a": torch.ones(3)}, {}).path


def export_backbone(place: Place) -> Path:
    export.backbone_file(place.native, place.folder / "backbone.safetensors")
    return place.folder / "backbone.safetensors"


def note_digest_of_export(place: Place) -> Path:
    digest = "a" * 64
    with place.native.open("rb") as native:
        exports.backbone(place.folder, native, digest, lambda: None)[0].close()
    return place.folder / f"{digest}.sha256"


def pack_folder(place: Place) -> Path:
    source = place.folder.parent / "photos"
    if not source.exists():
        write_tree(source, {"train/a": 2, "test/a": 1})
    packing.pack("photos", source, place.folder / "photos.wclpack", 8, 0.0, NullReporter())
    return place.folder / "photos.wclpack"


def keep_description(place: Place) -> Path:
    description = Description("photos", "folder", "0" * 64, {"train": 1}, ("a",), {"train": [1]})
    described._write(place.folder / "photos.json", "0" * 64, description)
    return place.folder / "photos.json"


def store_from_another_disk(place: Place) -> Path:
    source = place.folder.parent / "made"
    source.write_bytes(b"weights")
    LocalStorage(place.folder).put(source, "job/1/step-1.safetensors")
    return place.folder / "job" / "1" / "step-1.safetensors"


def make_local_key(place: Place) -> Path:
    keys.ensure_local(place.database, place.folder / "key")
    return place.folder / "key"


def write_run_file(place: Place) -> Path:
    source = DatasetSource(kind="builtin", path=None, digest="0")
    run_file = RunFile(job_id="j", attempt=1, host="h", kind="pretrain", spec={}, dataset=source)
    run_file.write(place.folder)
    return place.folder / RUN_FILE


def announce_server(place: Place) -> Path:
    server._announce(Settings(data_dir=place.folder), place.database, "http://127.0.0.1:1")
    return place.folder / "server.json"


CALLERS: tuple[Caller, ...] = (
    keep_artifact,
    leave_failure,
    write_checkpoint,
    export_backbone,
    note_digest_of_export,
    pack_folder,
    keep_description,
    store_from_another_disk,
    make_local_key,
    write_run_file,
    announce_server,
)


@pytest.fixture
def place(tmp_path: Path, sqlite_database: Database) -> Place:
    (tmp_path / "folder").mkdir()
    place = Place(tmp_path / "folder", sqlite_database)
    _ = place.native
    return place


def path_of(descriptor: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))


def refuse_other_folders(source: Any, target: Any) -> None:
    """Fail as a rename to another disk does."""
    if Path(source).parent != Path(target).parent:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


@pytest.mark.parametrize("caller", CALLERS, ids=lambda caller: caller.__name__)
def test_each_caller_syncs_the_file_renames_it_and_syncs_the_folder(
    caller: Caller, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, Path]] = []
    sync = os.fsync

    def record_sync(descriptor: int) -> None:
        steps.append(("fsync", path_of(descriptor)))
        sync(descriptor)

    def record_rename(source: Any, target: Any) -> None:
        refuse_other_folders(source, target)
        assert stat.S_ISREG(os.stat(source).st_mode)
        steps.append(("rename", Path(target)))
        place.replace(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_rename)
    path = caller(place)

    renamed = steps.index(("rename", path))
    action, beside = steps[renamed - 1]
    assert action == "fsync"
    assert beside.parent == path.parent
    assert beside.name.startswith(f".{path.name}.")
    assert steps[renamed + 1] == ("fsync", path.parent)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("caller", CALLERS, ids=lambda caller: caller.__name__)
def test_an_error_in_the_middle_leaves_the_old_file_and_no_part(
    caller: Caller, failing: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = caller(place)
    if caller is note_digest_of_export:
        path.unlink()  # a digest that is noted is not written again
    else:
        path.write_bytes(OLD)

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "replace", lambda *paths: (refuse_other_folders(*paths), place.replace(*paths)))
    monkeypatch.setattr(os, failing, fail)
    with contextlib.suppress(OSError):
        caller(place)

    assert (path.read_bytes() if path.exists() else OLD) == OLD
    assert list(place.folder.rglob("*.part")) == []


def test_the_writer_returns_the_result_of_writing(tmp_path: Path) -> None:
    def write(file: BinaryIO) -> int:
        return file.write(b"content")

    assert files.write_whole(tmp_path / "file", write) == 7


def test_new_folders_are_created_and_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(path_of(descriptor)))
    files.write_bytes(tmp_path / "a" / "b" / "file", b"content")

    assert synced[1:] == [tmp_path / "a" / "b", tmp_path / "a", tmp_path]


def test_the_mode_holds_from_the_first_byte(tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600

    files.write_whole(tmp_path / "secret", write, mode=0o600)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_a_file_system_without_sync_of_folders_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse_folders)
    files.write_bytes(tmp_path / "file", b"content")

    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_failing_sync_of_the_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_on_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail_on_folders)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.write_bytes(tmp_path / "file", b"content")


def test_no_file_takes_the_place_of_a_device(tmp_path: Path) -> None:
    """A FIFO stands for /dev/null, whose name an administrator's rename would take for all programs."""
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to(fifo)

    with pytest.raises(OSError, match="a device, a FIFO or a socket"):
        files.write_bytes(fifo, b"content")
    with httpx.Client() as client, pytest.raises(TransferError, match="a device, a FIFO or a socket"):
        download(client, "http://127.0.0.1:1/x", fifo, lambda _: None)
    files.write_bytes(link, b"content")

    assert stat.S_ISFIFO(fifo.lstat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "link"]


def test_a_link_a_folder_and_a_fifo_are_no_regular_files(tmp_path: Path) -> None:
    for name in ("folder", "fifo", "link", "whole"):
        path = tmp_path / name
        match name:
            case "folder":
                path.mkdir()
            case "fifo":
                os.mkfifo(path)
            case "link":
                (tmp_path / "target").write_bytes(OLD)
                path.symlink_to(tmp_path / "target")
            case "whole":
                path.write_bytes(OLD)
                assert files.read_regular(path, len(OLD)) == OLD
                with pytest.raises(OSError, match="at most 3 bytes"):
                    files.read_regular(path, 3)
                continue
        with pytest.raises(OSError, match=name):
            files.open_regular(path)
