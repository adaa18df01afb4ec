"""What a run died of when it left no last word: its exit code, what its ranks left, the disk, the kernel's counters."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from jobs.status import Reason
from jobs.storage import StorageUnavailable, is_full
from worker.process import PEER_LOST_EXIT, failure_of

_CGROUPS = Path("/sys/fs/cgroup")
_MIN_FREE_BYTES = 1 << 20

Verdict = tuple[str, str | None, str]  # outcome, reason, message


def verdict(code: int, folder: Path, oom_kills: int | None) -> Verdict:
    """How the attempt ended.

    Args:
        code: of the process, negative for a signal.
        folder: the attempt's.
        oom_kills: what `count_oom_kills` answered before the run.
    """
    if shutil.disk_usage(folder).free < _MIN_FREE_BYTES:
        return "failed", Reason.DISK_FULL, "the disk of the worker is full"
    if code < 0:
        return _killed(-code, oom_kills)
    if (left := failure_of(folder)) is not None:
        return left
    if code == PEER_LOST_EXIT:
        return "failed", Reason.KILLED, "the ranks of the run lost each other; the log may say why"
    message = f"the training process ended with exit code {code} and without a last word; its log may say why"
    return "failed", Reason.INTERNAL_ERROR, message


def reason_of(error: Exception) -> tuple[Reason, str]:
    """(reason, message) of an attempt that could not be made or followed."""
    if is_full(error):
        assert isinstance(error, OSError)
        return Reason.DISK_FULL, f"{os.strerror(error.errno or 0)}: the run's folder or the storage of its checkpoints"
    if isinstance(error, StorageUnavailable):
        return Reason.STORAGE_UNAVAILABLE, str(error)
    return Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}"[:2000]


def _killed(number: int, oom_kills: int | None) -> Verdict:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if number == signal.SIGKILL and oom_kills is not None:
        if (count_oom_kills() or 0) > oom_kills:
            message = f"the kernel killed the training process ({name}): the memory that this worker may use is full"
            return "failed", Reason.OUT_OF_MEMORY, message
        return "failed", Reason.KILLED, f"the training process was killed by {name}"
    hint = ", perhaps by the kernel for lack of memory" if number == signal.SIGKILL else ""
    return "failed", Reason.KILLED, f"the training process was killed by {name}{hint}"


def count_oom_kills(membership: Path = Path("/proc/self/cgroup"), root: Path = _CGROUPS) -> int | None:
    """How many processes of this process's control group the kernel has killed for lack of memory.

    Both versions of control groups count them: 2 in `memory.events`, 1 in `memory.oom_control`.

    Args:
        membership: a file with lines `ID:CONTROLLERS:PATH`.
        root: where the groups are mounted.

    Returns:
        None where nobody counts.
    """
    try:
        groups = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return None
    for _, controllers, group in groups:
        if controllers == "":
            mount, name = root, "memory.events"
        elif "memory" in controllers.split(","):
            mount, name = root / "memory", "memory.oom_control"
        else:
            continue
        for folder in (mount / group.lstrip("/"), mount):  # a container may see only its own group, as the root
            if (count := _count(folder / name)) is not None:
                return count
    return None


def _count(counter: Path) -> int | None:
    try:
        facts = dict(line.split() for line in counter.read_text().splitlines())
        return int(facts["oom_kill"])
    except (OSError, ValueError, KeyError):
        return None
