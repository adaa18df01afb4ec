"""Determines why a training process exited without an `end` record.

The sources are the exit code, the failure files of the ranks, the disk and the kernel's counters.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from sqlalchemy.exc import DBAPIError

from jobs.attempts import AttemptRef
from jobs.damage import LostFiles
from jobs.faults import describe
from jobs.status import Reason
from jobs.storage import StorageUnavailable, UnreadableFile, is_full
from wcl_core import limits
from wcl_core.config import PretrainSpec, parse_spec
from wcl_core.config.memory import advice
from wcl_core.files import MIN_FREE_BYTES, free_bytes
from wcl_core.protocol import (
    DISK_FULL_EXIT,
    FAILURE_FILES,
    LOST_PEER_FILES,
    PEER_LOST_EXIT,
    STORAGE_FAULT_EXIT,
    Failure,
    Outcome,
    RunFile,
)

log = logging.getLogger(__name__)

# Faults of one file or folder.  `worker.room` checks the folders above it, `worker.ability` the storage.
_OF_ONE_PLACE = frozenset({errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
_NO_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})


class AttemptEnd(NamedTuple):
    outcome: Outcome
    reason: str | None
    message: str | None


def log_end(attempt: AttemptRef, outcome: str, reason: str | None, message: str | None) -> None:
    """Write how an attempt ended into the log of the worker, which then answers what failed last night."""
    level = logging.WARNING if outcome == "failed" else logging.INFO
    log.log(level, "%s ended: %s", attempt, ", ".join(filter(None, (outcome, reason, message))))


def exit_reason(code: int, folder: Path, is_oom_kill: Callable[[], bool] | None, was_full: bool = False) -> AttemptEnd:
    """Determine how an attempt ended.

    Args:
        code: the exit code, negative for a signal.
        is_oom_kill: result of `OomKills.watch` before the run.
        was_full: whether the disk of the folder was full when the run ended; it may have room again.
    """
    if was_full or code == DISK_FULL_EXIT or is_disk_full(folder):
        return AttemptEnd("failed", Reason.DISK_FULL, "the disk of the worker is full")
    if code == STORAGE_FAULT_EXIT:
        message = "the disk of the worker does not take the run's report: it is read-only, away or broken"
        return AttemptEnd("failed", Reason.STORAGE_UNAVAILABLE, message)
    if code < 0:
        return _killed(-code, is_oom_kill, folder)
    if (failure := read_failure(folder)) is not None:
        return failure
    if code == PEER_LOST_EXIT:
        return _lost_peers(folder)
    message = f"the training process ended with exit code {code} and without an end record; its log may say why"
    return AttemptEnd("failed", Reason.INTERNAL_ERROR, message)


def is_disk_full(folder: Path) -> bool:
    """Return whether the disk of a folder has no room for the files of a run."""
    return free_bytes(folder) < MIN_FREE_BYTES


def read_failure(folder: Path) -> AttemptEnd | None:
    """Return the failure that a rank other than the first one left; None when no rank left one."""
    return next(_failures(folder, FAILURE_FILES), None)


def _failures(folder: Path, files: str) -> Iterator[AttemptEnd]:
    for path in sorted(folder.glob(files)):
        with contextlib.suppress(OSError, ValueError):
            failure = Failure.read(path)
            rank = path.stem.rpartition("-")[2]
            yield AttemptEnd(failure.outcome, failure.reason, f"rank {rank}: {failure.message}")


def _lost_peers(folder: Path) -> AttemptEnd:
    """Return the end of a run whose ranks have all lost the others: the report of a fault of NCCL, if there is one."""
    reports = sorted(_failures(folder, LOST_PEER_FILES), key=lambda end: end.reason != Reason.DEVICE_ERROR)
    message = "the ranks of the run lost each other; the log may say why"
    return next(iter(reports), AttemptEnd("failed", Reason.KILLED, message))


def reason_of(error: Exception) -> tuple[Reason, str]:
    """Return reason and message of an attempt that could not be started or followed."""
    if is_full(error):
        assert isinstance(error, OSError)
        return Reason.DISK_FULL, f"{os.strerror(error.errno or 0)}: the run's folder or the storage of its checkpoints"
    if isinstance(error, StorageUnavailable):
        return Reason.STORAGE_UNAVAILABLE, str(error)
    if isinstance(error, OSError):  # of the worker's own files and processes: the job can run elsewhere, or later
        reason = Reason.NO_RESOURCES if error.errno in _NO_RESOURCES else Reason.STORAGE_UNAVAILABLE
        return reason, f"the worker cannot start or follow the run: {error.strerror or error}"
    if isinstance(error, DBAPIError):  # its text holds the statement and its values
        return Reason.INTERNAL_ERROR, f"the database rejected a statement of the worker: {describe(error)}"[:2000]
    return Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}"[:2000]


def is_of_job(error: Exception) -> bool:
    """Return whether an error concerns the files of one job, so that this worker can run other jobs."""
    is_of_file = isinstance(error, LostFiles | UnreadableFile)
    is_own = isinstance(error, OSError) and not isinstance(error, StorageUnavailable)
    return is_of_file or (is_own and getattr(error, "errno", None) in _OF_ONE_PLACE)


def _advice(folder: Path) -> str:
    """Return what the run needed and what fits, as a further sentence; empty if it is unknown."""
    with contextlib.suppress(OSError, ValueError):
        run = RunFile.read(folder)
        if isinstance(spec := parse_spec(run.kind, run.spec), PretrainSpec):
            sentence = advice(spec, limits.memory_bytes() // spec.processes, is_gpu=False)
            return f"; {sentence}" if sentence else ""
    return ""


def _killed(number: int, is_oom_kill: Callable[[], bool] | None, folder: Path) -> AttemptEnd:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if number == signal.SIGKILL and is_oom_kill is not None:
        if is_oom_kill():
            message = f"the kernel killed the training process ({name}): the memory that this worker may use is full"
            message += _advice(folder)
            return AttemptEnd("failed", Reason.OUT_OF_MEMORY, message)
        return AttemptEnd("failed", Reason.KILLED, f"the training process was killed by {name}")
    hint = ", perhaps by the kernel for lack of memory" if number == signal.SIGKILL else ""
    return AttemptEnd("failed", Reason.KILLED, f"the training process was killed by {name}{hint}")


class OomKills:
    """The kernel's kills for lack of memory in the control group of this worker.

    The counter does not name the process.  So the kills up to one explain the end of a single attempt: a run that
    something else kills meanwhile is retried, which is the smaller error.
    """

    def __init__(self, count: Callable[[], int | None] | None = None) -> None:
        self._count = count or count_oom_kills
        self._explained = 0
        self._lock = threading.Lock()

    def watch(self) -> Callable[[], bool] | None:
        """Return a function that tells whether the kernel has killed a process since now; None without a counter."""
        before = self._count()
        return None if before is None else lambda: self._explains(before)

    def _explains(self, before: int) -> bool:
        with self._lock:
            count = self._count() or 0
            if count <= max(before, self._explained):
                return False
            self._explained = count
            return True


def count_oom_kills(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Count the processes of this process's control group that the kernel has killed for lack of memory.

    Both versions of control groups count them: 2 in `memory.events`, 1 in `memory.oom_control`.

    Args:
        membership: a file with lines `ID:CONTROLLERS:PATH`.
        root: where the groups are mounted.

    Returns:
        None without a counter.
    """
    for folder in limits.groups("memory", membership, root):
        for name in ("memory.events", "memory.oom_control"):
            if (count := _read_count(folder / name)) is not None:
                return count
    return None


def _read_count(counter: Path) -> int | None:
    try:
        counts = dict(line.split() for line in counter.read_text().splitlines())
        return int(counts["oom_kill"])
    except (OSError, ValueError, KeyError):
        return None
