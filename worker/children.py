"""The child processes of this worker: those that it has started, and the orphans that ended runs have left to it.

A run adopts its own orphans while it lives.  When it ends, they become children of the worker, which adopts them.  So a
child that the worker has not started belongs to no living attempt.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

import psutil

from wcl_core import orphans


class _Process(Protocol):
    @property
    def pid(self) -> int: ...


P = TypeVar("P", bound=_Process)
_TASKS = Path("/proc/self/task")
_started: set[int] = set()
_starting = threading.RLock()


def start(begin: Callable[[], P]) -> P:
    """Start a child process; meanwhile no thread looks for orphans, so none takes it for one.

    Every process of the worker is started here, and forgotten once its exit code was read.
    """
    with _starting:
        process = begin()
        _started.add(process.pid)
    return process


def forget(pid: int) -> None:
    """Note that the exit code of a child was read: its id may belong to another process now."""
    _started.discard(pid)


def left_behind() -> list[psutil.Process]:
    """Return the children that this process has not started; none where it does not adopt orphans."""
    if not orphans.are_adopted():
        return []
    with _starting:
        left = []
        for pid in _children() - _started:
            with suppress(psutil.NoSuchProcess):
                left.append(psutil.Process(pid))
        return left


def _children() -> set[int]:
    """Return the ids of the children of this process, where the kernel lists them without a look at every process.

    It may skip a child while another one goes, so two readings in a row must be the same.
    """
    if not (_TASKS / str(os.getpid()) / "children").exists():
        return {child.pid for child in psutil.Process().children()}
    before, now = None, _read_children()
    while before != now:
        before, now = now, _read_children()
    return now


def _read_children() -> set[int]:
    pids: set[int] = set()
    for task in _TASKS.iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            pids.update(map(int, (task / "children").read_bytes().split()))
    return pids
