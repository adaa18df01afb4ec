"""Orphans: processes whose parent has ended.  A process that adopts them becomes their parent, and so finds them.

A process can clear its environment, and leave its session, but not its ancestors.  This needs no privilege.  It works
on Linux only; elsewhere orphans go to the system's first process.

A run that becomes an orphan ends by itself: `ImportWatch` sees to it until `wcl_core.attempt.Control` does.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys
import threading
from collections.abc import Sequence

from wcl_core.protocol import ORPHANED_EXIT

_POLL_MILLISECONDS = 200
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


class ImportWatch:
    """A thread that ends this process when the pipe of its worker ends, until `stop`.

    It serves a run that is started by a command: its imports take seconds, and only then is its pipe read.

    Args:
        arguments: of the command; without `--control-fd N` there is no worker.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._is_over = threading.Event()
        if "--control-fd" in arguments[:-1]:
            descriptor = int(arguments[arguments.index("--control-fd") + 1])
            threading.Thread(target=self._watch, args=(descriptor,), daemon=True, name="imports").start()

    def stop(self) -> None:
        """Leave the pipe to another reader."""
        self._is_over.set()

    def _watch(self, descriptor: int) -> None:
        pipe = select.poll()
        pipe.register(descriptor, 0)  # its end and an invalid descriptor are reported in any case
        while not self._is_over.is_set():
            if pipe.poll(_POLL_MILLISECONDS) and not self._is_over.is_set():
                os._exit(ORPHANED_EXIT)
