"""Places where the tests may kill a process, raise an error or hold it up; without FAILPOINTS they do nothing.

FAILPOINTS names a folder; only the tests set it, a spec or a request cannot.  In the folder

    reached   gets a line each time a place is passed: what a sweep has to try is read from it
    armed     `NAME ACTION [SECONDS]`; the first process to pass NAME takes the file away and acts, so it acts once
    fired     what was armed, once it has acted
    release   ends a hang early
    failing   names that raise each time, while the file is there

Actions: `kill` (SIGKILL, to itself), `error` (what the place may raise by nature), `hang` (SECONDS, then it goes on).
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FOLDER = os.environ.get("FAILPOINTS")
_LOOK_SECONDS = 0.02


def is_armed() -> bool:
    """Whether this process has failpoints at all."""
    return _FOLDER is not None


def failpoint(name: str, of: Any = None, error: Callable[[str], Exception] | None = None) -> None:
    """Pass a named place.

    Args:
        name: unique; tests find all of them in the source by this call.
        of: a callable that tells passages apart: its name is added.
        error: makes what `error` raises; a full disk by default.
    """
    if _FOLDER is not None:
        _reach(Path(_FOLDER), name if of is None else f"{name}:{_name_of(of)}", error or _disk_full)


def _reach(folder: Path, name: str, error: Callable[[str], Exception]) -> None:
    with (folder / "reached").open("a") as file:
        file.write(name + "\n")
    if _is_in(folder / "failing", name):
        raise error(f"failpoint {name}")
    try:
        wanted, action, *seconds = (folder / "armed").read_text().split()
        if wanted != name:
            return
        (folder / "armed").rename(folder / "fired")  # of several processes one succeeds
    except (FileNotFoundError, ValueError):
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "error":
        raise error(f"failpoint {name}")
    elif action == "hang":
        deadline = time.monotonic() + float(seconds[0])
        while time.monotonic() < deadline and not (folder / "release").exists():
            time.sleep(_LOOK_SECONDS)


def _is_in(path: Path, name: str) -> bool:
    return path.exists() and name in path.read_text().split()


def _disk_full(text: str) -> OSError:
    return OSError(errno.ENOSPC, text)


def _name_of(of: Any) -> str:
    """`Slot._claim` for a lambda in that method."""
    of = getattr(of, "func", of)  # of a partial
    return str(getattr(of, "__qualname__", type(of).__name__)).split(".<locals>")[0]
