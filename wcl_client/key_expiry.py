"""The warning before a key expires: at most one a day for each key and time."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

ROTATION_ADVICE: Final = "an administrator can rotate it (`wcl keys rotate`), with a new time"
_DAY_SECONDS: Final = 86_400


def expiry_text(expires: str) -> str:
    """Return the time of the header `X-Key-Expires` as people write it."""
    return f"{expires[:16].replace('T', ' ')} UTC"


def is_first_of_day(expires: str) -> bool:
    """Return whether no warning about a key that expires then was printed within a day, and note this one.

    A user without a folder for such notes is always warned.
    """
    try:
        path = _note()
    except RuntimeError:  # an account without a home
        return True
    with contextlib.suppress(OSError):
        if path.read_text(encoding="utf-8") == expires and 0 <= time.time() - path.stat().st_mtime < _DAY_SECONDS:
            return False
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(expires, encoding="utf-8")
    return True


def _note() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "wcl" / "key-expires"
