"""The folder of an attempt: its lock, the mark of its processes, and its removal."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wcl_core.failpoints import failpoint

LOCK_FILE = "supervisor.lock"


def mark_of(job_id: str, number: int) -> str:
    """Return the mark that the processes of an attempt carry in their environment."""
    return f"{job_id}/{number}"


@contextmanager
def owned(folder: Path) -> Iterator[bool]:
    """Lock an attempt's folder; yield False while another living supervisor holds the lock."""
    with (folder / LOCK_FILE).open("a") as file:
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
