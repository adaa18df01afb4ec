"""Failpoints: places where tests kill a process, raise an error or delay it; without FAILPOINTS they do nothing.

FAILPOINTS names a folder.  Only the tests set it; a spec or a request cannot.  Files of the folder:

    reached   gets a line each time a process passes a failpoint; the tests read the names from it
    armed     `NAME ACTION [SECONDS]`; the first process that passes NAME renames the file and acts, so it acts once
    fired     the armed line, after the action
    release   ends a hang early
    failing   names that raise each time, while the file exists

Actions: `kill` (SIGKILL to itself), `error` (the error that this place can raise), `hang` (for SECONDS).
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
_POLL_SECONDS = 0.02


def is_armed() -> bool:
    """Return whether this process has failpoints."""
    return _FOLDER is not None


def failpoint(name: str, of: Any = None, error: Callable[[str], Exception] | None = None) -> None:
    """Pass a failpoint.

    Args:
        name: unique; tests find all names in the source by this call.
        of: a callable whose name is appended, to tell several callers of one failpoint apart.
        error: makes the exception of the action `error`; a full disk by default.
    """
    if _FOLDER is not None:
        _reach(Path(_FOLDER), name if of is None else f"{name}:{_name_of(of)}", error or _disk_full)


def _reach(folder: Path, name: str, error: Callable[[str], Exception]) -> None:
    with (folder / "reached").open("a") as file:
        file.write(name + "\n")
    failing = folder / "failing"
    if failing.exists() and name in failing.read_text().split():
        raise error(f"failpoint {name}")
    try:
        armed, action, *seconds = (folder / "armed").read_text().split()
        if armed != name:
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
            time.sleep(_POLL_SECONDS)


def _disk_full(text: str) -> OSError:
    return OSError(errno.ENOSPC, text)


def _name_of(of: Any) -> str:
    """Return the name of a callable; `Slots._claim` for a lambda in that method."""
    of = getattr(of, "func", of)  # of a partial
    return str(getattr(of, "__qualname__", type(of).__name__)).split(".<locals>")[0]
