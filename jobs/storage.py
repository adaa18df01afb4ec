"""The storage of registered files, and a folder as one.  A key is made from ids and numbers, never from a user's text.

A storage has an id, in its file `storage-id`.  `jobs.storage_id` compares it with the database's, and each operation of
a storage compares it again, so that nothing is read from, written to or removed from another folder.

Registered bytes leave by three methods: `verify` and `fetch` read the whole file each time, `open` only when the file
was touched since it was last read as a whole.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from jobs.attempts import AttemptRef
from jobs.checked_files import BadFile, CheckedFiles, Damaged, Missing, check_bytes, compare_size, copy_checked
from jobs.settings import Settings
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
        id: the id that the storage must have; None before `storage_id.connect`, when any storage is accepted.
        kind: what it is, for messages of jobs.
        setting: the variable that names it.
        is_folder: whether it is a folder of this machine; others are reached from anywhere.

    All methods but `marker`, `mark` and `check` raise StorageUnavailable when the storage has another id.
    """

    id: str | None
    kind: str
    setting: str
    is_folder: bool

    @property
    def where(self) -> str:
        """What and where the storage is, for operators."""

    def marker(self) -> str | None:
        """Return the id that the storage has; None without one.

        Raises:
            StorageUnavailable: the storage does not respond.
        """

    def mark(self, storage_id: str) -> None:
        """Give the storage an id."""

    def unmark(self) -> None:
        """Take the id away, so that no process uses the storage."""

    def check(self) -> None:
        """Return if this is the storage with the id, and this process may use it.

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

    def bring(self, opens: Callable[[], BinaryIO], key: str, sha256: str, size: int) -> bool:
        """Copy a file, which is opened for it, unless the key has its bytes; return whether it was copied.

        Args:
            opens: opens the source.
            key: of the file.
            sha256, size: as registered.

        Raises:
            BadFile: the key has other bytes or none, and neither has the source these.
        """

    def write(self, source: BinaryIO, key: str) -> None:
        """Copy an open file, from where it stands, into the storage; a file of the key is replaced."""

    def require(self, key: str) -> None:
        """Return if there is a file with this key.

        Raises:
            FileNotFoundError: there is none.
        """

    def confirm(self, key: str, sha256: str, size: int) -> None:
        """Return if the file that `put` has just stored has these bytes.

        Raises:
            BadFile: it has others.
        """

    def read(self, key: str) -> BinaryIO:
        """Open a file as it is, whatever its bytes are.

        Raises:
            BadFile: it is absent, or cannot be read.
        """

    def verify(self, key: str, sha256: str, size: int, digest_of: Callable[[BinaryIO], str] | None = None) -> None:
        """Read a whole file, and return if it has these bytes.

        Args:
            key: of the file.
            sha256, size: as registered; the size is compared first, as this is cheap.
            digest_of: reads an open file; `digest_of_open` by default.

        Raises:
            BadFile: it has others, or is absent.
        """

    def fetch(self, key: str, sha256: str, size: int, folder: Path) -> Path:
        """Return a local file after reading it as a whole, and comparing its bytes with the registered ones.

        Args:
            key, sha256, size: as registered.
            folder: for a copy, where the storage itself is not local; the caller removes it.

        Raises:
            BadFile: they are others, or there is no such file.
        """

    def open(self, key: str, sha256: str, size: int) -> BinaryIO:
        """Open a file whose bytes are the registered ones.

        Raises:
            BadFile: they are not.
        """

    def link(self, key: str, file_name: str) -> str | None:
        """Return an address from which a client gets the file without the server; None where there is none.

        Args:
            key: of a file that was opened just now.
            file_name: under which a browser saves it.
        """

    def keeps_files(self) -> AbstractContextManager[None]:
        """Keep all files: no process removes one meanwhile."""

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

    kind, setting = "the storage folder", "WCL_DATA_DIR"
    is_folder = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.id: str | None = None
        self._checked = CheckedFiles()

    @property
    def where(self) -> str:
        return f"the storage folder {self.root}"

    def marker(self) -> str | None:
        try:
            return (self.root / MARKER).read_bytes()[:100].decode("ascii", "replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageUnavailable(f"the storage folder does not respond: {error.strerror}") from error

    def mark(self, storage_id: str) -> None:
        write_bytes(self.root / MARKER, f"{storage_id}\n".encode("ascii"))

    def unmark(self) -> None:
        (self.root / MARKER).unlink(missing_ok=True)

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
        if marker is None:
            raise ForeignStorage(f"{self.where} has no file {MARKER}, so it is not the storage; check its mount")
        raise ForeignStorage(
            f"{self.where} is another storage: its id is {marker}, expected {self.id or 'the one of the database'}; "
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

    def bring(self, opens: Callable[[], BinaryIO], key: str, sha256: str, size: int) -> bool:
        self.check()
        place = self.place(key)
        try:
            check_bytes(place, sha256, size)
        except BadFile as flaw:
            try:
                with opens() as source:
                    copy_checked(source, place, sha256, size)
            except (BadFile, FileNotFoundError):
                raise flaw from None
            return True
        return False

    def write(self, source: BinaryIO, key: str) -> None:
        self.check()
        write_whole(self.place(key), lambda written: shutil.copyfileobj(source, written, _CHUNK_BYTES))

    def path(self, key: str) -> Path:
        """Return the file with a key.

        Raises:
            FileNotFoundError: there is none.
        """
        self.check()
        place = self.place(key)
        if place.is_file():
            return place
        if not self.root.is_dir() or not any(self.root.iterdir()):
            raise StorageUnavailable(f"the storage folder is absent or empty, so {key} cannot be read; check its mount")
        raise FileNotFoundError(f"the file of {key} is missing from the storage folder")

    def require(self, key: str) -> None:
        self.path(key)

    def confirm(self, key: str, sha256: str, size: int) -> None:
        self.verify(key, sha256, size)

    def read(self, key: str) -> BinaryIO:
        with _as_bad_file():
            return self.path(key).open("rb")

    def verify(self, key: str, sha256: str, size: int, digest_of: Callable[[BinaryIO], str] | None = None) -> None:
        with _as_bad_file(), self.path(key).open("rb") as file:
            compare_size(os.fstat(file.fileno()).st_size, size)
            if (digest_of or digest_of_open)(file) != sha256:
                raise Damaged("its file is damaged: the digest differs")

    def fetch(self, key: str, sha256: str, size: int, folder: Path) -> Path:  # noqa: ARG002 (no copy is made)
        self.verify(key, sha256, size)
        return self.place(key)

    def open(self, key: str, sha256: str, size: int) -> BinaryIO:
        with _as_bad_file():
            return self._checked.open(self.path(key), sha256, size)

    def link(self, key: str, file_name: str) -> str | None:  # noqa: ARG002
        return None

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


def open_storage(settings: Settings) -> Storage:
    """Return the storage of the settings: a bucket, or else the folder in the data folder."""
    if settings.storage_url is None:
        return LocalStorage(settings.checkpoints_dir)
    from jobs.bucket import BucketStorage  # here: it builds upon this module

    return BucketStorage(settings.storage_url, settings.storage_endpoint)


def file_key(attempt: AttemptRef, file_name: str) -> str:
    """Return the key of an attempt's file; each attempt has a folder, so it never touches another one's files."""
    return f"{attempt.folder}/{file_name}"


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return digest_of_open(file)


def digest_of_open(file: BinaryIO) -> str:
    """Return the sha256 of the bytes of an open file, from where it stands."""
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


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
