"""Cached descriptions: valid only while nothing has changed."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import parallel
from tests.wcl_core.data.test_data import write_image, write_tree
from wcl_core import data, registration
from wcl_core.data import decoding, described, file_index, folder, loading, packing
from wcl_core.reporter import NullReporter


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "photos"
    write_tree(path, {"train/a": 3, "train/b/deep": 2, "test/a": 2})
    return path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Record the calls that read and hash the files; accept young files."""
    times: list[Path] = []
    original = folder.describe_folder

    def describe_folder(name: str, root: Path, *others: Any, **more: Any) -> data.Description:
        times.append(root)
        return original(name, root, *others, **more)

    monkeypatch.setattr(described, "describe_folder", describe_folder)
    monkeypatch.setattr(loading, "describe_folder", describe_folder)
    monkeypatch.setattr(file_index, "REST_NS", -(10**18))
    return times


def describe(root: Path, cache: Path) -> data.Description:
    return data.describe("photos", "folder", root, cache)


def test_an_unchanged_folder_is_hashed_once(root: Path, tmp_path: Path, hashed: list[Path]) -> None:
    cache = tmp_path / "kept" / "photos.json"
    plain = data.describe("photos", "folder", root)
    assert [describe(root, cache) for _ in range(3)] == [plain] * 3
    assert len(hashed) == 2


def rewrite_with_old_times(root: Path) -> None:
    """Rewrite a file with the same size and modification time; only its status time changes."""
    path = root / "train" / "a" / "00.png"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda root: write_image(root / "train" / "a" / "00.png", (99, 0, 0)),
    "content, with its times put back": rewrite_with_old_times,
    "name": lambda root: (root / "train" / "a" / "02.png").rename(root / "train" / "a" / "zz.png"),
    "class": lambda root: (root / "train" / "b").rename(root / "train" / "c"),
    "one more": lambda root: write_image(root / "train" / "b" / "new.png"),
    "one less": lambda root: (root / "test" / "a" / "00.png").unlink(),
    "split": lambda root: (root / "test").rename(root / "val"),
    "times alone": lambda root: os.utime(root / "test" / "a" / "00.png", ns=(1, 1)),
    "one more that is left out": lambda root: (root / "train" / "a" / "00.heic").write_bytes(b"none"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_invalidates_the_cache(root: Path, tmp_path: Path, hashed: list[Path], change: str) -> None:
    cache = tmp_path / "photos.json"
    describe(root, cache)
    CHANGES[change](root)
    assert describe(root, cache) == data.describe("photos", "folder", root)
    assert len(hashed) == 3


def test_another_folder_with_the_same_listing_is_hashed(root: Path, tmp_path: Path, hashed: list[Path]) -> None:
    cache = tmp_path / "photos.json"
    describe(root, cache)
    moved = root.rename(tmp_path / "moved")
    describe(moved, cache)
    assert hashed == [root, moved]


def test_a_description_of_young_files_is_not_cached(
    root: Path, tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_index, "REST_NS", 10**15)
    cache = tmp_path / "photos.json"
    describe(root, cache)
    assert not cache.exists()


def test_a_description_is_not_cached_if_files_change_during_hashing(
    root: Path, tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = described.describe_folder

    def describe_folder(name: str, path: Path, *others: Any, **more: Any) -> data.Description:
        description = original(name, path)
        write_image(root / "train" / "a" / "late.png")
        return description

    monkeypatch.setattr(described, "describe_folder", describe_folder)
    describe(root, tmp_path / "photos.json")
    assert not (tmp_path / "photos.json").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"fingerprint": 1}'])
def test_with_a_damaged_cache_the_folder_is_hashed(
    root: Path, tmp_path: Path, hashed: list[Path], content: str
) -> None:
    cache = tmp_path / "photos.json"
    cache.write_text(content)
    assert describe(root, cache) == data.describe("photos", "folder", root)
    assert json.loads(cache.read_text())["counts"] == {"train": 5, "test": 2}


def test_a_wrong_bit_in_the_cache_is_noticed(root: Path, tmp_path: Path, hashed: list[Path]) -> None:
    cache = tmp_path / "photos.json"
    right = describe(root, cache)
    text = cache.read_text()
    for name in ("digest", "counts", "png"):
        place = text.index(f'"{name}": ') + len(name) + 6
        place += next(step for step, letter in enumerate(text[place:]) if letter in "123456")
        cache.write_text(text[:place] + "7" + text[place + 1 :])
        before = len(hashed)

        assert describe(root, cache) == right

        assert len(hashed) == before + 1, name
        assert cache.read_text() == text


def test_with_a_cache_that_cannot_be_written_the_folder_is_hashed(
    root: Path, tmp_path: Path, hashed: list[Path]
) -> None:
    (tmp_path / "file").write_text("")
    assert describe(root, tmp_path / "file" / "photos.json").counts == {"train": 5, "test": 2}


@pytest.mark.process
def test_the_description_of_a_folder_needs_no_torch(root: Path) -> None:
    program = (
        "import sys; from wcl_core.data import describe; from pathlib import Path; "
        "print(describe('photos', 'folder', Path(sys.argv[1])).digest, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(root)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [data.describe("photos", "folder", root).digest, "False"]


# --- the index of files --------------------------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the files that are read; accept young files."""
    names: list[str] = []
    original = decoding.read_file

    def read_file(path: Path, wish: Any) -> Any:
        names.append(path.name)
        return original(path, wish)

    monkeypatch.setattr(decoding, "read_file", read_file)
    monkeypatch.setattr(file_index, "REST_NS", -(10**18))
    return names


def test_of_a_changed_folder_only_the_changed_files_are_read(root: Path, tmp_path: Path, read: list[str]) -> None:
    cache = tmp_path / "kept" / "photos.json"
    describe(root, cache)
    write_image(root / "train" / "a" / "new.png", (9, 9, 9))
    write_image(root / "train" / "b" / "deep" / "01.png", (1, 2, 3))
    (root / "train" / "a" / "02.png").unlink()
    (root / "test" / "a" / "00.png").write_bytes(b"no image")
    read.clear()

    again = describe(root, cache)

    assert sorted(read) == ["00.png", "01.png", "new.png"]
    assert again == data.describe("photos", "folder", root)
    assert again.counts == {"train": 5, "test": 1}


def test_a_reading_that_was_killed_goes_on_where_it_was(
    root: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "photos.json"
    monkeypatch.setattr(file_index, "_COMMIT_SECONDS", 0.0)
    index = file_index.FileIndex(cache.with_suffix(".files"), root)
    for place in ("train/a/00.png", "train/a/01.png"):
        index.add(place, decoding.read_file(root / place, decoding.Wish(None))[0], 10**19)
    del index  # without `close`
    read.clear()

    described = describe(root, cache)

    assert len(read) == 5
    assert described == data.describe("photos", "folder", root)


@pytest.mark.parametrize("damage", ["bit", "file", "other folder"])
def test_a_damaged_index_is_not_believed(root: Path, tmp_path: Path, read: list[str], damage: str) -> None:
    cache = tmp_path / "photos.json"
    described = describe(root, cache)
    cache.unlink()
    index = cache.with_suffix(".files")
    if damage == "bit":
        database = sqlite3.connect(index)
        database.execute("UPDATE files SET digest = zeroblob(32)")
        database.commit()
        database.close()
    elif damage == "file":
        index.write_bytes(b"no database" * 1000)
    else:
        root.rename(tmp_path / "moved")
        (tmp_path / "photos").symlink_to("moved")
        root = tmp_path / "moved"
    read.clear()

    assert describe(root, cache).digest == described.digest
    assert len(read) == 7


@pytest.mark.process
def test_a_description_loads_no_torch() -> None:
    code = """
import sys, wcl_core.registration, wcl_core.data.packed
described = wcl_core.registration.describe("digits", "builtin", None)
assert not {"torch", "sklearn"} & set(sys.modules)
print(described.digest, described.counts, described.classes, described.class_counts["test"])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    digits = data.load("digits", "builtin", None, 8, 0.0, NullReporter())
    counts = np.bincount(digits.test.labels).tolist()
    assert done.stdout.strip() == f"{digits.digest} {{'train': 1433, 'test': 364}} {digits.classes} {counts}"


@pytest.mark.process
def test_the_registration_lists_names_before_it_reads_contents(root: Path, tmp_path: Path) -> None:
    packed = tmp_path / "photos.wclpack"
    packing.pack("photos", root, packed, 8, 0.0, NullReporter())
    requests = [
        {"name": "photos", "kind": "folder", "path": str(root), "cache": str(tmp_path / "c.json"), "lists": {}},
        {"name": "gone", "kind": "folder", "path": str(tmp_path / "gone"), "cache": str(tmp_path / "d"), "lists": {}},
        {"name": "packed", "kind": "packed", "path": str(packed), "cache": str(tmp_path / "e"), "lists": {}},
        {"name": "digits", "kind": "builtin", "path": None, "cache": str(tmp_path / "f"), "lists": {}},
    ]
    lines = "\n".join(map(json.dumps, requests))
    command = [parallel.python(), "-m", "wcl_core.registration"]
    done = subprocess.run(command, input=lines, check=True, capture_output=True, text=True)
    messages = [json.loads(line) for line in done.stdout.splitlines()]

    assert [(message["name"], sorted(message.keys() - {"name"})) for message in messages] == [
        ("digits", ["description", "path"]),
        ("photos", ["listed"]),
        ("gone", ["error"]),
        ("photos", ["description", "path"]),
        ("packed", ["description", "path"]),
    ]
    assert messages[1]["listed"]["counts"] == {"train": 5, "test": 2}
    for message, kind, path in ((messages[3], "folder", root), (messages[4], "packed", packed)):
        described = data.describe(message["name"], kind, path)
        assert message["description"] == json.loads(json.dumps(registration.description_json(described)))
