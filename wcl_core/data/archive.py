"""Archives of image folders: unpacked once, since images are read in any order, again and again.

Only image files and lists are unpacked.  A member whose path leads out of the archive makes the whole archive refused,
because an honest program writes none.  Links and devices are left out, and so is everything that a folder leaves out.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from wcl_core.data.image_file import ENDINGS, MAX_BYTES
from wcl_core.data.images import DataError
from wcl_core.data.kinds import HIDDEN, LISTS
from wcl_core.data.layout import LEFT_OUT, TOO_LARGE, Remarks, is_hidden, list_files, shown, with_ending
from wcl_core.data.unpacked import remove
from wcl_core.digests import digest_of

_SPARE_BYTES = 1 << 30  # that stay free on the disk
_PIECE = 1 << 20
# The libraries raise all of these for archives that are damaged, encrypted or packed in an unknown way.
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
)
LINK = "links and devices in the archive"
TWICE = "files that the archive has twice"


def unpacked(name: str, archive: Path, place: Path) -> Path:
    """Return the folder of an archive's images; they are unpacked if this archive has not been.

    Of several workers with one data folder one unpacks, and the others wait.

    Args:
        name: of the dataset, for messages.
        place: the path that the folder's name begins with.  Folders of earlier contents of the archive stay until
            `unpacked.keep_only`, because runs read them.

    Raises:
        DataError: the archive is damaged or encrypted, holds a path that leads out of it, or does not fit on the disk.
    """
    try:
        status = archive.stat()
    except OSError as error:
        raise DataError(f"dataset {name}: archive {archive} cannot be read: {error.strerror}") from error
    version = digest_of([str(archive.absolute()), status.st_size, status.st_mtime_ns, status.st_ino])[:16]
    folder = place.with_name(f"{place.name}.{version}.unpacked")
    if folder.is_dir():
        return folder
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        lock = os.open(place.parent, os.O_RDONLY)
        stack.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        remove(place, "unpacking")  # of a process that was killed
        unfinished = Path(tempfile.mkdtemp(prefix=f"{place.name}.", suffix=".unpacking", dir=place.parent))
        stack.callback(shutil.rmtree, unfinished, ignore_errors=True)
        try:
            _unpack(name, archive, unfinished)
        except DataError:
            raise
        except _DAMAGED as error:
            raise DataError(f"dataset {name}: {archive} cannot be unpacked: {error}") from error
        os.sync()  # a crash of the machine would leave empty files below a name that promises all
        unfinished.rename(folder)
    return folder


def source(name: str, folder: Path) -> Path:
    """Return the list at the top of an unpacked archive that names its images; its folder if there is not just one."""
    top = folder
    while len(inside := [each for each in top.iterdir() if not each.name.startswith(".")]) == 1 and inside[0].is_dir():
        top = inside[0]
    lists = []
    for each in sorted(top.iterdir()):
        if each.suffix.lower() in LISTS:
            with contextlib.suppress(DataError):  # a read-me
                list_files(name, each)
                lists.append(each)
    return lists[0] if len(lists) == 1 else folder


def _unpack(name: str, archive: Path, folder: Path) -> None:
    """Unpack the images and lists of an archive into an empty folder.

    Raises:
        DataError: a path leads out of the archive, or the disk is too full.
        OSError, ValueError, RuntimeError, zlib.error and others: the archive is damaged.
    """
    left_out = Remarks()
    members = _of_zip(archive) if zipfile.is_zipfile(archive) else _of_tar(archive)
    with contextlib.closing(members):
        for path, size, opened in members:
            parts = PurePosixPath(path.replace("\\", "/")).parts
            if path.startswith(("/", "\\")) or ".." in parts or "\0" in path or (parts and ":" in parts[0]):
                raise DataError(
                    f"dataset {name}: {archive} is refused, because its member {shown(path)[:200]!r} leads out of it; "
                    "make the archive again without such paths"
                )
            reason = LINK if opened is None else _reason_to_skip(parts, size)
            target = folder.joinpath(*parts)
            if reason is None and target.exists():
                reason = TWICE
            if reason is None and shutil.disk_usage(folder).free - size < _SPARE_BYTES:
                raise DataError(f"dataset {name}: {archive} does not fit on the disk of the data folder when unpacked")
            if reason is not None or opened is None:
                left_out.add(reason or LINK, path)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(opened, target, size)
    (folder / LEFT_OUT).write_text(json.dumps([each.model_dump() for each in left_out.list()]))


def _reason_to_skip(parts: Sequence[str], size: int) -> str | None:
    if any(map(is_hidden, parts)):
        return HIDDEN
    ending = PurePosixPath(parts[-1]).suffix.lower() if parts else ""
    if ending not in ENDINGS and ending not in LISTS:
        return with_ending(ending)
    return TOO_LARGE if size > MAX_BYTES else None


def _copy(opened: Callable[[], IO[bytes]], target: Path, size: int) -> None:
    """Copy a member.

    Raises:
        ValueError: it is larger than the archive says.
    """
    with opened() as member, target.open("xb") as file:
        while piece := member.read(_PIECE):
            file.write(piece)
            if file.tell() > size:
                raise ValueError(f"{shown(target.name)} is larger than the archive says")


_Members = Generator[tuple[str, int, Callable[[], IO[bytes]] | None], None, None]


def _of_zip(archive: Path) -> _Members:
    """Yield path, size and opener of each file of a zip archive; a link has no opener."""
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            if not member.is_dir():
                is_link = stat.S_ISLNK(member.external_attr >> 16)
                yield member.filename, member.file_size, None if is_link else partial(file.open, member)


def _of_tar(archive: Path) -> _Members:
    """Yield path, size and opener of each file of a tar archive; links and devices have no opener."""
    with tarfile.open(archive) as file:
        while (member := file.next()) is not None:
            if not member.isdir():
                opener = partial(_opened, file, member) if member.isreg() else None
                yield member.name, member.size, opener
            vars(file)["members"] = []  # the library keeps them all: gigabytes for millions of files


def _opened(file: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    opened = file.extractfile(member)
    assert opened is not None, "it is a regular file"
    return opened
