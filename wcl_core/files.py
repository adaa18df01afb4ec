"""The one way to write a file: it becomes visible whole, and it survives a power cut.

    beside ── fsync the file ── rename ── fsync the folder

A reader of the final name sees the old content or the new one, never a part.  Standard library only, so that every
process can use it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, Literal, TypeVar
from uuid import uuid4

Step = Literal["fsync", "rename", "sync_folder"]
_Written = TypeVar("_Written")


MIN_FREE_BYTES: Final = 1 << 20  # a disk with less is full
PRIVATE_UMASK: Final = 0o077  # of the service's processes: other accounts of the machine read none of their files


def write_whole(
    path: Path,
    write: Callable[[BinaryIO], _Written],
    *,
    mode: int = 0o666,
    before: Callable[[Step], None] = lambda _step: None,
) -> _Written:
    """Write a file beside its final name, fsync it, rename it and fsync its folder.

    Args:
        path: the final name; missing folders above it are created.
        write: receives the open file, empty, for reading and writing.
        mode: permissions of the file, reduced by the umask.
        before: called before each step, with the step's name.

    Returns:
        The result of `write`.

    Raises:
        OSError: the disk is full or read-only. Any error leaves the old file as it was and removes the new one, unless
            the error is the folder's fsync: then the new file has its name already.
    """
    refuse_device(path)
    new_folders = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    # A random name: several threads and processes may write the same file at once.
    beside = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with open(beside, "x+b", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            result = write(file)
            file.flush()
            before("fsync")
            os.fsync(file.fileno())
        before("rename")
        beside.replace(path)
        before("sync_folder")
        for folder in (path.parent, *(folder.parent for folder in new_folders)):
            sync_folder(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    return result


def refuse_device(path: Path) -> None:
    """Refuse a name that a rename would take from a device, a FIFO or a socket, such as /dev/null of an administrator.

    Raises:
        OSError: the name is one of these.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, "it is a device, a FIFO or a socket; expected the name of a file", str(path))


def write_bytes(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file whole, as `write_whole` does, from bytes in memory."""
    write_whole(path, lambda file: file.write(content), mode=mode)


def open_regular(path: Path, mode: Literal["rb", "r+b", "ab"] = "rb") -> BinaryIO:
    """Open a file that another program may have replaced: a link is not followed, and a FIFO is not waited for.

    Raises:
        OSError: it is absent, or no regular file.
    """
    flags = os.O_NOFOLLOW | os.O_NONBLOCK
    file = open(path, mode, opener=lambda name, usual: os.open(name, usual | flags, 0o666))  # noqa: SIM115 (returned)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "expected a regular file", str(path))
    return file


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file as `open_regular` opens it.

    Raises:
        OSError: it is absent, no regular file, or larger than `max_bytes`.
    """
    with open_regular(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"expected at most {max_bytes} bytes", str(path))
    return content


def sync_folder(folder: Path) -> None:
    """Fsync a folder, so that the names in it survive a power cut; does nothing on a file system without that call.

    Raises:
        OSError: the folder is absent or cannot be read, or the disk fails.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: this file system cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """Return the free bytes of a folder's disk; 0 without a free inode."""
    disk = os.statvfs(folder)
    return 0 if disk.f_files and not disk.f_favail else disk.f_bavail * disk.f_frsize
