"""An attempt's folder: who owns it, and when it goes."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wcl_core.failpoints import failpoint

RUN_FILE = "run.json"
LOCK_FILE = "supervisor.lock"


def mark_of(job_id: str, number: int) -> str:
    """What the processes of an attempt carry in their environment."""
    return f"{job_id}/{number}"


@contextmanager
def owned(folder: Path) -> Iterator[bool]:
    """Hold an attempt's folder; False when another living supervisor holds it."""
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
    with suppress(OSError):  # another attempt's folder may stand beside it
        folder.parent.rmdir()
