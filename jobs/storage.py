"""Where registered files lie.  A key is made by the service from ids and numbers, never from a user's text."""

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


class Damaged(Exception):  # noqa: N818 (named as the state it tells of)
    """A registered file is absent, or its bytes are not the registered ones."""


class StorageUnavailable(FileNotFoundError):  # noqa: N818
    """The whole storage is away, so an absent file says nothing."""


class Storage(Protocol):
    """Files by key, each whole or absent."""

    def put(self, source: Path, key: str) -> None:
        """Take the file over; doing it again after an interruption is fine."""

    def path(self, key: str) -> Path:
        """A local file with the content; FileNotFoundError when it is not there."""

    def delete(self, key: str) -> None:
        """Remove the file; one that is not there is fine."""

    def keys(self, job_id: str) -> Iterator[str]:
        """The keys of all that is stored of a job, half-copied files included."""

    def job_ids(self) -> Iterator[str]:
        """The jobs of which anything is stored."""


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
            source.replace(target)  # the same disk: nothing is copied
        except OSError as error:
            if not source.exists():
                raise FileNotFoundError(f"{source} is missing") from error
            _copy(source, target)
            source.unlink()
        failpoint("storage.after_rename")
        for folder in (target.parent, target.parent.parent, self.root):  # the folders above may be new, too
            sync_folder(folder)

    def path(self, key: str) -> Path:
        found = self._place(key)
        if found.is_file():
            return found
        if not self.root.is_dir() or not any(self.root.iterdir()):
            raise StorageUnavailable(f"the storage folder, looked into for {key}, is absent or empty: is it mounted?")
        raise FileNotFoundError(f"the file of {key} is missing from the storage folder")

    def delete(self, key: str) -> None:
        self._place(key).unlink(missing_ok=True)

    def job_ids(self) -> Iterator[str]:
        return (folder.name for folder in self.root.glob("*") if folder.is_dir())

    def keys(self, job_id: str) -> Iterator[str]:
        root = self.root.resolve()  # as `_place` does: the folder may be a link to a larger disk
        return (str(path.relative_to(root)) for path in self._place(job_id).glob("*/*") if path.is_file())

    def _place(self, key: str) -> Path:
        place = (self.root / key).resolve()
        if not place.is_relative_to(self.root.resolve()):
            raise ValueError(f"{key} lies outside the storage folder")
        return place


def file_key(job_id: str, attempt: int, file_name: str) -> str:
    """Each attempt has a folder of its own, so a superseded one can never touch its successor's files."""
    return f"{job_id}/{attempt}/{file_name}"


def sha256_of(path: Path) -> str:
    """Digest of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verified(storage: Storage, key: str, sha256: str, size: int) -> Path:
    """The local file of a key, read once and found to hold the registered bytes.

    Args:
        storage, key: where it is.
        sha256, size: as registered; the size is compared first, since that costs nothing.

    Raises:
        Damaged: it is absent, cannot be read, or holds other bytes.
        StorageUnavailable: the whole storage is away.
    """
    try:
        path = storage.path(key)
        found = path.stat().st_size
        if found != size:
            raise Damaged(f"its file is damaged: {found} bytes instead of {size}")
        if sha256_of(path) != sha256:
            raise Damaged("its file is damaged: the digest differs")
    except StorageUnavailable:
        raise
    except OSError as error:
        if error.errno not in (None, errno.ENOENT, errno.EIO):  # a network folder that does not answer
            raise StorageUnavailable(f"the storage folder does not answer: {error.strerror}") from error
        raise Damaged(f"its file cannot be read: {error.strerror or error}") from error
    return path


def is_full(error: BaseException) -> bool:
    """Whether a write failed for want of space."""
    return isinstance(error, OSError) and error.errno in _FULL


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read:
        write_whole(target, lambda written: shutil.copyfileobj(read, written, 1 << 20))
