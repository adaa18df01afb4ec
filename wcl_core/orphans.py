"""Orphans: processes whose parent has ended.  A process that adopts them becomes their parent, and so finds them.

A process can clear its environment, and leave its session, but not its ancestors.  This needs no privilege.  It works
on Linux only; elsewhere orphans go to the system's first process.
"""

from __future__ import annotations

import ctypes
import sys

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37


def adopt() -> None:
    """Become the parent of all orphans among the descendants of this process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def are_adopted() -> bool:
    """Return whether this process adopts orphans."""
    value = ctypes.c_int(0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(value), 0, 0, 0)
    return bool(value.value)
