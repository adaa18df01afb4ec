"""Where registered files lie.  A key is made by the service from ids and numbers, never from a user's text."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path
from typing import Protocol

from wcl_core.failpoints import failpoint


class Storage(Protocol):
    """Files by key, each whole or absent."""

    def put(self, source: Path, key: str) -> None:
        """Take the file over; doing it again after an interruption is fine."""

    def path(self, key: str) -> Path:
        """A local file with the content; FileNotFoundError when it is not there."""

    def delete(self, key: str) -> None:
        """Remove the file; one that is not there is fine."""


class LocalStorage:
    """A folder of this machine, or one that all machines share.

    Args:
        root: the folder; made when needed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, source: Path, key: str) -> None:
        target = self._place(key)
        if not source.exists() and target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        failpoint("storage.before_rename")
        try:
            os.replace(source, target)  # the same disk: nothing is copied
        except OSError as error:
            if not source.exists():
                raise FileNotFoundError(f"{source} is missing") from error
            _copy(source, target)
            source.unlink()
        failpoint("storage.after_rename")
        for folder in (target.parent, target.parent.parent, self.root):  # the folders above may be new, too
            _sync_folder(folder)

    def path(self, key: str) -> Path:
        found = self._place(key)
        if not found.is_file():
            raise FileNotFoundError(f"the file of {key} is missing from the storage folder")
        return found

    def delete(self, key: str) -> None:
        self._place(key).unlink(missing_ok=True)

    def _place(self, key: str) -> Path:
        place = (self.root / key).resolve()
        if not place.is_relative_to(self.root.resolve()):
            raise ValueError(f"{key} lies outside the storage folder")
        return place


def checkpoint_key(job_id: str, attempt: int, file_name: str) -> str:
    """Each attempt has a folder of its own, so a superseded one can never touch its successor's files."""
    return f"{job_id}/{attempt}/{file_name}"


def sha256_of(path: Path) -> str:
    """Digest of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(source: Path, target: Path) -> None:
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with source.open("rb") as read, beside.open("wb") as written:
            shutil.copyfileobj(read, written, 1 << 20)
            written.flush()
            os.fsync(written.fileno())
        beside.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
