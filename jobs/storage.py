"""The storage of registered files.  The service makes a key from ids and numbers, never from a user's text.

A storage has an id, in its file `storage-id`.  `jobs.storage_id` compares it with the database's, and each operation of
a storage compares it again, so that nothing is read from, written to or removed from another folder.

Registered bytes leave by two functions: `verified` reads the whole file each time, `Storage.open` only when the file
was touched since it was last read as a whole.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from jobs.attempts import AttemptRef
from jobs.checked_files import CheckedFiles, Damaged, Missing, compare_size
from wcl_core.failpoints import failpoint
from wcl_core.files import free_bytes, sync_folder, write_bytes, write_whole

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # the disk, a quota, a limit on a file's size
MARKER = "storage-id"  # the file that holds the storage's id
_CHUNK_BYTES = 1 << 20
OWNER = "storage-owner"  # the file that holds the place of the database that the files belong to
KEEPING = "storage-lock"  # the file whose lock a backup holds while it needs all files


class StorageUnavailable(OSError):  # noqa: N818
    """The storage itself cannot be reached, or it is another one, so an absent file is not a missing one."""


class ForeignStorage(StorageUnavailable):
    """The storage and the database do not belong together; the message names the remedy."""


class UnreadableFile(StorageUnavailable):
    """A registered file is there, and the account of this process may not read it; others may be readable."""


class KeptFiles(StorageUnavailable):
    """A backup needs the files at the moment, so none is removed."""


class OutsideStorage(ValueError):  # noqa: N818
    """A key, or a link in the storage, leads outside its folder."""


class Storage(Protocol):
    """Files by key; each file is whole or absent.

    Attributes:
        id: the id that the storage must have; None before `storage_id.connect`, when any folder is accepted.

    All methods but `marker`, `mark` and `check` raise StorageUnavailable when the storage has another id.
    """

    id: str | None

    @property
    def name(self) -> str:
        """Where the storage is, for operators."""

    def marker(self) -> str | None:
        """Return the id that the storage has; None without one.

        Raises:
            StorageUnavailable: the storage does not respond.
        """

    def mark(self, storage_id: str) -> None:
        """Give the storage an id."""

    def check(self) -> None:
        """Return if this is the storage with the id.

        Raises:
            StorageUnavailable: it is absent, or another one.
        """

    def free_bytes(self) -> int | None:
        """Return the free bytes; None where they are unknown."""

    def owner(self) -> str | None:
        """Return the `Database.place` that the files belong to; None if it is not noted or this folder is a copy."""

    def set_owner(self, place: str) -> None:
        """Note the `Database.place` that the files belong to."""

    def put(self, source: Path, key: str) -> None:
        """Move a file into the storage; may be repeated after an interruption."""

    def write(self, source: BinaryIO, key: str) -> None:
        """Copy an open file, from where it stands, into the storage; a file of the key is replaced."""

    def path(self, key: str) -> Path:
        """Return a local file with the content.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def open(self, key: str, sha256: str, size: int) -> BinaryIO:
        """Open a file whose bytes are the registered ones.

        Raises:
            BadFile: they are not.
        """

    def delete(self, key: str) -> None:
        """Remove a file; an absent file is no error.  While a backup needs it, it stays, as garbage for later."""

    def delete_job(self, job_id: str) -> None:
        """Remove all files of a job; an absent one is no error.

        Raises:
            KeptFiles: a backup needs them.
        """

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
        self.id: str | None = None
        self._checked = CheckedFiles()

    @property
    def name(self) -> str:
        return str(self.root)

    def marker(self) -> str | None:
        try:
            return (self.root / MARKER).read_bytes()[:100].decode("ascii", "replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageUnavailable(f"the storage folder does not respond: {error.strerror}") from error

    def mark(self, storage_id: str) -> None:
        write_bytes(self.root / MARKER, f"{storage_id}\n".encode("ascii"))

    def free_bytes(self) -> int | None:
        with suppress(OSError):
            return free_bytes(self.root)
        return None

    def owner(self) -> str | None:
        try:
            inode, _, place = os.fsdecode((self.root / OWNER).read_bytes()).strip().partition(" ")
            return place if inode == str(self.root.stat().st_ino) else None
        except OSError:
            return None

    def set_owner(self, place: str) -> None:
        write_bytes(self.root / OWNER, os.fsencode(f"{self.root.stat().st_ino} {place}\n"))

    def check(self) -> None:
        if self.id is None or (marker := self.marker()) == self.id:
            return
        where = f"the storage folder {self.name}"
        if marker is None:
            raise ForeignStorage(f"{where} has no file {MARKER}, so it is not the storage; check its mount")
        raise ForeignStorage(
            f"{where} is another storage: its id is {marker}, expected {self.id or 'the one of the database'}; "
            "check WCL_DATA_DIR and its mount"
        )

    def put(self, source: Path, key: str) -> None:
        self.check()
        target = self.place(key)
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

    def write(self, source: BinaryIO, key: str) -> None:
        self.check()
        write_whole(self.place(key), lambda written: shutil.copyfileobj(source, written, _CHUNK_BYTES))

    def path(self, key: str) -> Path:
        self.check()
        place = self.place(key)
        if place.is_file():
            return place
        if not self.root.is_dir() or not any(self.root.iterdir()):
            raise StorageUnavailable(f"the storage folder is absent or empty, so {key} cannot be read; check its mount")
        raise FileNotFoundError(f"the file of {key} is missing from the storage folder")

    def open(self, key: str, sha256: str, size: int) -> BinaryIO:
        with _as_bad_file():
            return self._checked.open(self.path(key), sha256, size)

    def delete(self, key: str) -> None:
        self.check()
        with suppress(KeptFiles), self._removes():
            self.place(key).unlink(missing_ok=True)

    def delete_job(self, job_id: str) -> None:
        self.check()
        place = self.place(job_id)
        if place.parent != self.root.resolve():
            raise OutsideStorage(f"the key {job_id} is not the name of a job's folder")
        with self._removes():
            try:
                shutil.rmtree(place)
            except FileNotFoundError:  # also when another server removes the same files
                if place.exists():
                    raise
            sync_folder(self.root)

    @contextmanager
    def keeps_files(self) -> Iterator[None]:
        """Keep all files: no process removes one meanwhile.  The lock ends with this process, however that ends."""
        self.check()
        with (self.root / KEEPING).open("ab") as file:
            with suppress(OSError):  # a file system without locks; the backup names files that vanish
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _removes(self) -> Iterator[None]:
        """Hold the right to remove files.

        Raises:
            KeptFiles: a backup needs them.
        """
        with ExitStack() as held:
            try:
                file = held.enter_context((self.root / KEEPING).open("ab"))
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise KeptFiles("a backup is under way, so no file is removed") from error
            except OSError:  # a file system without locks, or a full disk
                pass
            yield

    def job_ids(self) -> Iterator[str]:
        self.check()
        return (folder.name for folder in self.root.glob("*") if folder.is_dir())

    def keys(self, job_id: str) -> Iterator[str]:
        self.check()
        root = self.root.resolve()  # like `place`: the folder may be a link to a larger disk
        return (str(path.relative_to(root)) for path in self.place(job_id).glob("*/*") if path.is_file())

    def place(self, key: str) -> Path:
        """Return where the file of a key is, or would be.

        Raises:
            OutsideStorage: the key leads outside the folder.
        """
        place = (self.root / key).resolve()
        if not place.is_relative_to(self.root.resolve()):
            raise OutsideStorage(f"the key {key} leads outside the storage folder")
        return place


def file_key(attempt: AttemptRef, file_name: str) -> str:
    """Return the key of an attempt's file; each attempt has a folder, so it never touches another one's files."""
    return f"{attempt.folder}/{file_name}"


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verified(
    storage: Storage, key: str, sha256: str, size: int, digest_of: Callable[[Path], str] | None = None
) -> Path:
    """Return the local file of a key after reading it and comparing its bytes with the registered digest.

    Args:
        storage, key: the storage and the key of the file.
        sha256, size: as registered; the size is compared first, as this is cheap.
        digest_of: reads the file; `sha256_of` by default.

    Raises:
        Damaged, Missing: the file has other bytes, or is absent.
        StorageUnavailable: the storage itself cannot be reached.
    """
    with _as_bad_file():
        path = storage.path(key)
        compare_size(path.stat().st_size, size)
        if (digest_of or sha256_of)(path) != sha256:
            raise Damaged("its file is damaged: the digest differs")
    return path


@contextmanager
def _as_bad_file() -> Iterator[None]:
    """Turn the errors of reading a registered file into the state of the file or of the storage."""
    try:
        yield
    except StorageUnavailable:
        raise
    except OutsideStorage as error:
        raise Damaged("its file is a link that leads outside the storage folder") from error
    except FileNotFoundError as error:
        raise Missing("its file is missing from the storage folder") from error
    except PermissionError as error:
        raise UnreadableFile(
            f"the account of this process may not read its file in the storage folder ({error.strerror}); fix its owner"
        ) from error
    except OSError as error:
        if error.errno not in (None, errno.EIO):  # a network folder that does not respond
            raise StorageUnavailable(f"the storage folder does not respond: {error.strerror}") from error
        raise Damaged(f"its file cannot be read: {error.strerror or error}") from error


def is_full(error: BaseException) -> bool:
    """Return whether a write failed because the disk is full, or a quota or a size limit was reached."""
    return isinstance(error, OSError) and error.errno in _FULL


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read:
        write_whole(target, lambda written: shutil.copyfileobj(read, written, _CHUNK_BYTES))
