"""Files by key: complete or absent, inside the folder, and with the same bytes."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from jobs.attempts import AttemptRef
from jobs.storage import LocalStorage, file_key, sha256_of

BYTES = bytes(range(256)) * 5000


@pytest.fixture
def store(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "attempts")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "written"
    path.write_bytes(BYTES)
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_put_moves_a_file_and_path_returns_it(store: LocalStorage, source: Path) -> None:
    key = file_key(AttemptRef("job", 2, "f0"), "step-1.safetensors")
    store.put(source, key)

    assert store.path(key).read_bytes() == BYTES
    assert not source.exists()
    assert names_in(store.root) == ["job/2-f0/step-1.safetensors"]


def test_put_may_be_repeated_after_an_interruption(store: LocalStorage, source: Path) -> None:
    store.put(source, "a/b")
    store.put(source, "a/b")
    assert store.path("a/b").read_bytes() == BYTES

    source.write_bytes(BYTES)  # it was written again before the first one was registered
    store.put(source, "a/b")
    assert store.path("a/b").read_bytes() == BYTES


def test_an_absent_source_is_reported(store: LocalStorage, source: Path) -> None:
    source.unlink()
    with pytest.raises(FileNotFoundError, match="written"):
        store.put(source, "a/b")
    with pytest.raises(FileNotFoundError, match="a/b"):
        store.path("a/b")


def test_delete_removes_a_file_and_may_be_repeated(store: LocalStorage, source: Path) -> None:
    store.put(source, "a/b")
    store.delete("a/b")
    store.delete("a/b")

    with pytest.raises(FileNotFoundError):
        store.path("a/b")


def other_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make renames between folders fail, as between disks; within a folder they work."""
    replace = os.replace

    def refuse(source: Any, target: Any, **options: Any) -> None:
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        replace(source, target, **options)

    monkeypatch.setattr(os, "replace", refuse)


def test_a_file_on_another_disk_is_copied(store: LocalStorage, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_disk(monkeypatch)
    store.put(source, "a/b")

    assert store.path("a/b").read_bytes() == BYTES
    assert not source.exists()
    assert names_in(store.root) == ["a/b"]


@pytest.mark.parametrize("is_other_disk", [False, True])
def test_every_folder_above_a_stored_file_is_synced_after_its_rename(
    store: LocalStorage, source: Path, monkeypatch: pytest.MonkeyPatch, is_other_disk: bool
) -> None:
    """After a power cut the disk holds the name of a registered file, and the names of the new folders above it."""
    if is_other_disk:
        other_disk(monkeypatch)
    synced: list[Path] = []
    replace, fsync = os.replace, os.fsync

    def record_rename(*paths: Any) -> None:
        replace(*paths)
        synced.clear()

    def record_sync(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    monkeypatch.setattr(os, "replace", record_rename)
    monkeypatch.setattr(os, "fsync", record_sync)
    store.put(source, "job/1/file")

    assert {store.root / "job" / "1", store.root / "job", store.root} <= set(synced)


def test_a_copy_that_fails_leaves_the_source_and_no_part(
    store: LocalStorage, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_disk(monkeypatch)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        store.put(source, "a/b")

    assert source.read_bytes() == BYTES
    assert names_in(store.root) == []
    with pytest.raises(FileNotFoundError):
        store.path("a/b")


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "..", "a/../../attempts-of-others/x"])
def test_a_key_never_leaves_the_folder(store: LocalStorage, source: Path, key: str) -> None:
    for act in (lambda: store.put(source, key), lambda: store.path(key), lambda: store.delete(key)):
        with pytest.raises(ValueError, match="outside"):
            act()
    assert source.read_bytes() == BYTES


def test_a_link_that_leads_outside_is_not_followed(store: LocalStorage, source: Path) -> None:
    store.root.mkdir()
    (store.root / "link").symlink_to(source)
    (store.root / "folder").symlink_to(source.parent)

    for key in ("link", "folder/written"):
        with pytest.raises(ValueError, match="outside"):
            store.path(key)


def test_a_folder_is_not_a_file(store: LocalStorage, source: Path) -> None:
    store.put(source, "a/b")
    for key in ("a", "", "."):
        with pytest.raises(FileNotFoundError):
            store.path(key)


def test_attempts_have_folders_of_their_own() -> None:
    attempts = [AttemptRef("j", number, token) for number in (1, 2) for token in ("a", "b", None)]

    assert len({file_key(attempt, "f") for attempt in attempts}) == 6


def test_the_digest_is_that_of_the_bytes(source: Path) -> None:
    assert sha256_of(source) == hashlib.sha256(BYTES).hexdigest()


def test_a_folder_that_is_a_link_lists_its_files_by_key(tmp_path: Path, source: Path) -> None:
    (tmp_path / "larger disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "larger disk")
    store = LocalStorage(tmp_path / "link")
    key = file_key(AttemptRef("job", 2, "f0"), "step-1.safetensors")
    store.put(source, key)

    assert list(store.keys("job")) == [key]
