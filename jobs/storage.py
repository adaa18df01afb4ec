"""The storage of registered files.  The service makes a key from ids and numbers, never from a user's text."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from wcl_core.failpoints import failpoint
from wcl_core.files import sync_folder, write_whole

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # the disk, a quota, a limit on a file's size


class Damaged(Exception):  # noqa: N818 (named as the state of the file)
    """A registered file is absent, or its bytes are not the registered ones."""


class StorageUnavailable(FileNotFoundError):  # noqa: N818
    """The storage itself cannot be reached, so an absent file is not a damaged one."""


class Storage(Protocol):
    """Files by key; each file is whole or absent."""

    def put(self, source: Path, key: str) -> None:
        """Move a file into the storage; may be repeated after an interruption."""

    def path(self, key: str) -> Path:
        """Return a local file with the content.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def delete(self, key: str) -> None:
        """Remove a file; an absent file is no error."""

    def keys(self, job_id: str) -> Iterator[str]:
        """Return the keys of all stored files of a job, including partial copies."""

    def job_ids(self) -> Iterator[str]:
        """Return the ids of the jobs with stored files."""


class LocalStorage:
    """A storage in a folder, on this machine or shared by all machines.

    Args:
        root: the folder; created if needed.
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
            source.replace(target)  # on the same disk, nothing is copied
        except OSError as error:
            if not source.exists():
                raise FileNotFoundError(f"{source} is missing") from error
            _copy(source, target)
            source.unlink()
        failpoint("storage.after_rename")
        for folder in (target.parent, target.parent.parent, self.root):  # the folders above may be new too
            sync_folder(folder)

    def path(self, key: str) -> Path:
        place = self._place(key)
        if place.is_file():
            return place
        if not self.root.is_dir() or not any(self.root.iterdir()):
            raise StorageUnavailable(f"the storage folder is absent or empty, so {key} cannot be read; check its mount")
        raise FileNotFoundError(f"the file of {key} is missing from the storage folder")

    def delete(self, key: str) -> None:
        self._place(key).unlink(missing_ok=True)

    def job_ids(self) -> Iterator[str]:
        return (folder.name for folder in self.root.glob("*") if folder.is_dir())

    def keys(self, job_id: str) -> Iterator[str]:
        root = self.root.resolve()  # like `_place`: the folder may be a link to a larger disk
        return (str(path.relative_to(root)) for path in self._place(job_id).glob("*/*") if path.is_file())

    def _place(self, key: str) -> Path:
        place = (self.root / key).resolve()
        if not place.is_relative_to(self.root.resolve()):
            raise ValueError(f"the key {key} leads outside the storage folder")
        return place


def file_key(job_id: str, attempt: int, file_name: str) -> str:
    """Return the key of an attempt's file; each attempt has a folder, so it never touches another one's files."""
    return f"{job_id}/{attempt}/{file_name}"


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verified(storage: Storage, key: str, sha256: str, size: int) -> Path:
    """Return the local file of a key after comparing its bytes with the registered digest.

    Args:
        storage, key: the storage and the key of the file.
        sha256, size: as registered; the size is compared first, as this is cheap.

    Raises:
        Damaged: the file is absent, cannot be read, or has other bytes.
        StorageUnavailable: the storage itself cannot be reached.
    """
    try:
        path = storage.path(key)
        actual = path.stat().st_size
        if actual != size:
            raise Damaged(f"its file is damaged: {actual} bytes instead of {size}")
        if sha256_of(path) != sha256:
            raise Damaged("its file is damaged: the digest differs")
    except StorageUnavailable:
        raise
    except OSError as error:
        if error.errno not in (None, errno.ENOENT, errno.EIO):  # a network folder that does not respond
            raise StorageUnavailable(f"the storage folder does not respond: {error.strerror}") from error
        raise Damaged(f"its file cannot be read: {error.strerror or error}") from error
    return path


def is_full(error: BaseException) -> bool:
    """Return whether a write failed because the disk is full, or a quota or a size limit was reached."""
    return isinstance(error, OSError) and error.errno in _FULL


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read:
        write_whole(target, lambda written: shutil.copyfileobj(read, written, 1 << 20))
