"""The cache of decoded datasets: one packed file for each content and size, shared by all processes of a machine.

    DIGEST-SIZE-RULES-DECODER.wclpack    the images; each user holds a shared lock, so that it is not removed meanwhile
    DIGEST-SIZE-RULES-DECODER.lock       held by the process that writes the file; it goes with it
    DIGEST.lock                          of a packed dataset, which lies elsewhere
    compiler/                            what PyTorch's compiler has compiled for runs; each holds compiler.lock

The digest is that of the folder's content, so the file of another version is another file.  When the room does not
suffice, the files that were not used for the longest time are removed, but none in use.

A lock file's time is that of the last use.  Its text is a mark: every byte of the file was compared with its checksums.
The mark holds for a day, for this boot of the machine, and for a file with the same inode, size and times, so an open
reads a large file only now and then.  This module knows names, locks, marks and room; `packed` and `prepared` write and
read the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import PIL

from wcl_core.data.image_file import RULES_VERSION

COMPILED = "compiler"
_SUFFIX = ".wclpack"
_DISK_SHARE = 0.25  # by default
_FREE_BYTES = 1 << 30  # that the cache leaves on the disk, for checkpoints and the database
_POLL_SECONDS = 0.1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MARK_SECONDS = 86_400.0


class NoRoomError(Exception):
    """The cache has no room for a file; the message says why."""


@dataclass(frozen=True)
class Cache:
    """The files of one folder.

    Attributes:
        folder: it is created when it is first used.
        max_bytes: of all files, compiled ones included; None for a quarter of the disk.
    """

    folder: Path
    max_bytes: int | None = None

    def path(self, digest: str, size: int) -> Path:
        """Return the file of a content and a size, whether or not it exists.

        Other rules or another decoder may give other pixels, so they are part of the name.
        """
        return self.folder / f"{digest}-{size}-{RULES_VERSION}-{PIL.__version__}{_SUFFIX}"

    def opened(self, path: Path) -> HeldFile | None:
        """Return a file, which is not removed while it is held; None if it does not exist."""
        while True:
            try:
                file = HeldFile(path)
            except FileNotFoundError:
                return None
            if _is_at(file, path):
                with contextlib.suppress(OSError):
                    _lock_of(path).touch()  # the order in which files are removed
                return file
            file.close()  # it was removed between opening and locking

    def mark(self, name: str) -> Mark:
        """Return the mark of a file: of one in the cache by its name without ending, of a packed one by its digest."""
        return Mark(self.folder / f"{name}.lock")

    @contextmanager
    def writing(self, path: Path, wait: Callable[[], None]) -> Iterator[None]:
        """Hold the right to write a file; what a killed writer has left is removed.

        Args:
            wait: called again and again while another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self._locked(path, wait)
        try:
            self._remove_parts(path)
            yield
        finally:
            if not path.exists():
                _lock_of(path).unlink(missing_ok=True)
            lock.close()

    def _locked(self, path: Path, wait: Callable[[], None]) -> BinaryIO:
        place = _lock_of(path)
        while True:
            file = place.open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(file, place):
                    return file
                file.close()
            except BlockingIOError:
                file.close()
                wait()
                time.sleep(_POLL_SECONDS)

    def _remove_parts(self, path: Path) -> None:
        for part in self.folder.glob(f".{path.name}.*.part"):
            part.unlink(missing_ok=True)

    def make_room(self, needed: int) -> None:
        """Remove files until there is room for another one, the longest unused first.

        Raises:
            NoRoomError: too little can be removed.
        """
        self._remove_abandoned()
        disk = os.statvfs(self.folder)
        limit = self.max_bytes if self.max_bytes is not None else int(_DISK_SHARE * disk.f_blocks * disk.f_frsize)
        sizes = {file.path: file.size for file in sorted([*self.files(), *self._compiled()], key=_age)}
        free = disk.f_bavail * disk.f_frsize - _FREE_BYTES
        if needed > limit:
            raise NoRoomError(f"it needs {_gib(needed)}, more than the limit of {_gib(limit)} (WCL_CACHE_BYTES)")
        missing = max(sum(sizes.values()) + needed - limit, needed - free)
        for path in list(sizes):
            if missing <= 0:
                return
            if self._remove(path):
                missing -= sizes[path]
        if missing > 0:
            raise NoRoomError(f"it needs {_gib(needed)}, {_gib(missing)} more than its disk and its files in use leave")

    def files(self) -> list[CachedFile]:
        """Return all files, the longest unused first."""
        files = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):
                files.append(CachedFile(path, path.stat().st_size, _used_at_ns(path)))
        return sorted(files, key=_age)

    def _compiled(self) -> list[CachedFile]:
        """Return the folder of compiled code as one file, if it is there."""
        folder = self.folder / COMPILED
        return [CachedFile(folder, tree_bytes(folder), _used_at_ns(folder))] if folder.is_dir() else []

    def _remove_compiled(self, folder: Path) -> bool:
        """Remove the compiled code unless a run uses it; return whether it is gone."""
        with contextlib.suppress(OSError), _lock_of(folder).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    def _remove(self, path: Path) -> bool:
        """Remove a file that no process uses; return whether it is gone."""
        if path.name == COMPILED:
            return self._remove_compiled(path)
        try:
            with path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        _lock_of(path).unlink(missing_ok=True)
        return True

    def _remove_abandoned(self) -> None:
        """Remove the unfinished files of killed writers."""
        for part in self.folder.glob(f".*{_SUFFIX}.*.part"):
            path = self.folder / f"{part.name[1 : part.name.index(_SUFFIX)]}{_SUFFIX}"
            try:
                with _lock_of(path).open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    part.unlink(missing_ok=True)
            except FileNotFoundError:
                part.unlink(missing_ok=True)
            except OSError:  # it is being written
                continue


def hold_compiled() -> HeldFile | None:
    """Keep the compiled code that this process uses from being removed; return None if it is in no cache."""
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))
    if folder.name != COMPILED:
        return None
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        _lock_of(folder).touch()  # the order in which files are removed
        return HeldFile(_lock_of(folder))
    return None


class HeldFile:
    """A file with a shared lock, open for reading until no object refers to it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    __del__ = close


@dataclass(frozen=True)
class Mark:
    """The note that every byte of a file was compared with its checksums."""

    _place: Path

    def holds(self, status: os.stat_result) -> bool:
        """Return whether this very file was checked on this boot of the machine, less than a day ago."""
        with contextlib.suppress(OSError, ValueError):
            identity, _, checked_at = self._place.read_text().rpartition(" ")
            return identity == _identity(status) and 0 <= _uptime() - float(checked_at) < _MARK_SECONDS
        return False

    def set(self, status: os.stat_result) -> None:
        """Note that a file was checked; `status` is from before the check, in case the file has changed meanwhile."""
        with contextlib.suppress(OSError):  # also where the machine has no id of its boot
            text = f"{_identity(status)} {_uptime()}"
            self._place.parent.mkdir(parents=True, exist_ok=True)
            self._place.write_text(text)


def _identity(status: os.stat_result) -> str:
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"  # a program can set the first one, not the second
    return f"{_BOOT_ID.read_text().strip()} {status.st_dev} {status.st_ino} {status.st_size} {times}"


def _uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class CachedFile:
    path: Path
    size: int
    used_at_ns: int


def _age(file: CachedFile) -> tuple[int, Path]:
    return file.used_at_ns, file.path


def tree_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118 (there may be many)
    return total


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name.removesuffix(_SUFFIX)}.lock")


def _used_at_ns(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return _lock_of(path).stat().st_mtime_ns
    return path.stat().st_mtime_ns


def _is_at(file: BinaryIO | HeldFile, path: Path) -> bool:
    """Return whether an open file still has its name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
