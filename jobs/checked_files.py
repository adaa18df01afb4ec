"""Files whose bytes are compared with a digest: what can be wrong with one, and which ones were touched since."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import BinaryIO, NamedTuple

from wcl_core.files import write_whole

_CHUNK_BYTES = 1 << 20
_MAX_STAMPS = 10_000
_REST_NS = 3_000_000_000  # more than the coarsest clock of a file system, two seconds


class BadFile(Exception):  # noqa: N818 (its kinds are named as states of the file)
    """A registered file is not in the storage as it was registered; the message gives the reason."""


class Damaged(BadFile):
    """The bytes are not the registered ones, or the disk cannot read them."""


class Missing(BadFile):
    """The file is absent."""


class Stamp(NamedTuple):
    """What the file system changes when a file is touched."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, file: BinaryIO) -> Stamp:
        """Return the stamp of an open file."""
        status = os.fstat(file.fileno())
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class CheckedFiles:
    """Files whose bytes were compared with their digest; a file that was touched since is compared again."""

    def __init__(self) -> None:
        self._stamps: dict[tuple[Path, str], Stamp] = {}

    def open(self, path: Path, sha256: str, size: int) -> BinaryIO:
        """Open a file whose bytes have this digest and size.

        Raises:
            Damaged: they have others.
            OSError: the file cannot be read.
        """
        file = path.open("rb")
        try:
            while (stamp := Stamp.of(file)) != self._stamps.get((path, sha256)):
                compare_size(stamp.size, size)
                started_ns = time.time_ns()
                file.seek(0)
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise Damaged("its file is damaged: the digest differs")
                if Stamp.of(file) == stamp:
                    self._remember(path, sha256, stamp, started_ns)
                    break
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def _remember(self, path: Path, sha256: str, stamp: Stamp, started_ns: int) -> None:
        """Keep the stamp, unless the file could change again within one tick of its times."""
        if max(stamp.mtime_ns, stamp.ctime_ns) + _REST_NS < started_ns:
            if len(self._stamps) >= _MAX_STAMPS:
                self._stamps.clear()
            self._stamps[path, sha256] = stamp


def compare_size(actual: int, size: int) -> None:
    """Raise Damaged unless a file has the size that is registered."""
    if actual != size:
        raise Damaged(f"its file is damaged: {actual} bytes instead of {size}")


def check_bytes(path: Path, sha256: str, size: int) -> None:
    """Return if a file has these bytes.

    Raises:
        BadFile: it has others, or is absent.
    """
    try:
        with path.open("rb") as file:
            compare_size(path.stat().st_size, size)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != sha256:
                raise Damaged("its file is damaged: the digest differs")
    except FileNotFoundError as error:
        raise Missing("its file is missing") from error
    except OSError as error:
        raise Damaged(f"its file cannot be read: {error.strerror or error}") from error


def copy_checked(source: BinaryIO, target: Path, sha256: str, size: int) -> None:
    """Copy an open file whole; a copy with other bytes than these does not get its name.

    Raises:
        Damaged: the source has other bytes.
    """
    compare_size(source.seek(0, os.SEEK_END), size)
    source.seek(0)

    def write(written: BinaryIO) -> None:
        digest = hashlib.sha256()
        while chunk := _read(source):
            digest.update(chunk)
            written.write(chunk)
        if digest.hexdigest() != sha256:
            raise Damaged("its file is damaged: the digest differs")

    write_whole(target, write)


def _read(file: BinaryIO) -> bytes:
    try:
        return file.read(_CHUNK_BYTES)
    except OSError as error:
        if error.errno is None:  # of a storage that cannot be reached
            raise
        raise Damaged(f"its file cannot be read: {error.strerror or error}") from error
