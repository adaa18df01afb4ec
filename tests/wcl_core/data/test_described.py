"""Cached descriptions: valid only while nothing has changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.wcl_core.data.test_data import write_image, write_tree
from wcl_core import data
from wcl_core.data import described, folder, loading


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

    def describe_folder(name: str, root: Path) -> data.Description:
        times.append(root)
        return original(name, root)

    monkeypatch.setattr(described, "describe_folder", describe_folder)
    monkeypatch.setattr(loading, "describe_folder", describe_folder)
    monkeypatch.setattr(described, "_REST_NS", -(10**18))
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
    monkeypatch.setattr(described, "_REST_NS", 10**15)
    cache = tmp_path / "photos.json"
    describe(root, cache)
    assert not cache.exists()


def test_a_description_is_not_cached_if_files_change_during_hashing(
    root: Path, tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = described.describe_folder

    def describe_folder(name: str, path: Path) -> data.Description:
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
