"""The folder of an attempt: its place, its lock, the mark of its processes, and its removal."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jobs.attempts import AttemptRef
from wcl_core.failpoints import failpoint
from wcl_core.files import open_regular
from wcl_core.protocol import Place

LOCK_FILE = "supervisor.lock"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def place_of(folder: Path) -> Place:
    """Return the place of a folder.

    A copy of a data folder has the same ids, tokens and files.  Its folders are other ones, which only their places
    tell.
    """
    status = folder.stat()
    path = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
    return Place(path=path, device=status.st_dev, inode=status.st_ino, boot=boot)


def mark_of(attempt: AttemptRef, place: Place) -> str:
    """Return the mark that the processes of an attempt carry in their environment.

    It names the attempt, and the place of its folder: a worker on a copy of the folder never ends these processes.
    """
    return f"{attempt.folder}@{place.device}:{place.inode}"


@contextmanager
def owned(folder: Path) -> Iterator[bool]:
    """Lock an attempt's folder; yield False while another living supervisor holds the lock."""
    with open_regular(folder / LOCK_FILE, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def clear(folder: Path) -> None:
    """Remove an attempt's folder, whose content is stored or superseded."""
    failpoint("supervisor.clear")
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # the job's folder may hold another attempt's folder
        folder.parent.rmdir()
