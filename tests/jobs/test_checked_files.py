"""A file is read as a whole before it is used, unless it was read since it was last touched."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import checked_files
from jobs.checked_files import CheckedFiles, Damaged, Stamp

BYTES = bytes(range(256)) * 100
SHA256 = hashlib.sha256(BYTES).hexdigest()
WRONG = b"?" + BYTES[1:]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "file"
    place.write_bytes(BYTES)
    return place


def read(files: CheckedFiles, path: Path) -> bytes:
    with files.open(path, SHA256, len(BYTES)) as file:
        return file.read()


def _as_old(path: Path) -> None:
    path.write_bytes(WRONG)


def _with_its_times(path: Path) -> None:
    times = path.stat()
    path.write_bytes(WRONG)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _replaced(path: Path) -> None:
    beside = path.with_name("beside")
    beside.write_bytes(WRONG)
    os.utime(beside, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    beside.replace(path)


def _shorter(path: Path) -> None:
    os.truncate(path, len(BYTES) - 1)


@pytest.mark.parametrize("touch", [_as_old, _with_its_times, _replaced, _shorter])
def test_a_file_that_was_touched_is_read_again(
    path: Path, touch: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_files, "_REST_NS", -(10**18))  # as if the file were old
    files = CheckedFiles()
    assert read(files, path) == BYTES

    touch(path)

    for _ in range(2):
        with pytest.raises(Damaged):
            read(files, path)
    path.write_bytes(BYTES)
    assert read(files, path) == BYTES


def test_an_untouched_file_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_files, "_REST_NS", -(10**18))
    files = CheckedFiles()
    read(files, path)
    monkeypatch.setattr(checked_files.hashlib, "file_digest", lambda *_: pytest.fail("it is read again"))

    assert read(files, path) == BYTES


def test_a_file_of_this_moment_is_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could change a second time within one tick of its times, as with a coarse clock."""
    now = time.time_ns()
    monkeypatch.setattr(Stamp, "of", lambda file: Stamp(1, 1, len(BYTES), now, now))
    files = CheckedFiles()
    read(files, path)
    path.write_bytes(WRONG)

    with pytest.raises(Damaged):
        read(files, path)


def test_a_fresh_file_is_not_remembered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, calls = CheckedFiles(), []
    digest = hashlib.file_digest
    monkeypatch.setattr(checked_files.hashlib, "file_digest", lambda *of: calls.append(of) or digest(*of))

    assert read(files, path) == read(files, path) == BYTES

    assert len(calls) == 2


def touched_while_read(monkeypatch: pytest.MonkeyPatch, touch: Callable[[], object]) -> None:
    """Touch a file once, after its bytes were read and before its times are compared."""
    digest, touches = hashlib.file_digest, [touch]

    def read_and_touch(*of: Any) -> Any:
        result = digest(*of)
        if touches:
            touches.pop()()
        return result

    monkeypatch.setattr(checked_files.hashlib, "file_digest", read_and_touch)


def test_a_file_that_changes_while_it_is_read_is_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched_while_read(monkeypatch, lambda: path.write_bytes(WRONG))

    with pytest.raises(Damaged):
        read(CheckedFiles(), path)


def test_a_file_that_is_only_touched_while_it_is_read_is_good(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched_while_read(monkeypatch, lambda: path.chmod(0o600))

    assert read(CheckedFiles(), path) == BYTES


def test_a_digest_is_remembered_for_its_file_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_files, "_REST_NS", -(10**18))
    files = CheckedFiles()
    read(files, path)

    with pytest.raises(Damaged):
        files.open(path, "0" * 64, len(BYTES))


def test_a_refused_file_is_closed(path: Path) -> None:
    path.write_bytes(WRONG)
    with pytest.raises(Damaged):
        read(CheckedFiles(), path)

    descriptors = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    assert not [link for link in descriptors if link.exists() and link.readlink() == path]
