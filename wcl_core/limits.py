"""The memory and the CPU cores that this process may use: those of the machine, or of its control groups if fewer.

A container is a control group.  The kernel has two versions of them: in version 1 each controller has a tree of its
own, in version 2 all share one.  A group is limited by all groups above it, so the smallest limit counts.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

_MEMBERSHIP = Path("/proc/self/cgroup")  # lines ID:CONTROLLERS:PATH
_GROUPS = Path("/sys/fs/cgroup")
_MAX_THREADS = 32


def num_cores(membership: Path = _MEMBERSHIP, root: Path = _GROUPS) -> int:
    """Return the number of cores that this process may use, rounded up, at least 1."""
    can_ask = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if can_ask else os.cpu_count() or 1
    quotas = [quota for folder in groups("cpu", membership, root) if (quota := _quota(folder)) is not None]
    return max(1, min(cores, math.ceil(min(quotas, default=cores))))


def num_threads() -> int:
    """Return the number of threads for work that waits for the disk and computes."""
    return min(_MAX_THREADS, num_cores() + 4)


def memory_bytes(membership: Path = _MEMBERSHIP, root: Path = _GROUPS) -> int:
    """Return the bytes of memory that this process may use."""
    limits = [
        limit
        for folder in groups("memory", membership, root)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := _number(folder / name)) is not None
    ]
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *limits])


def groups(controller: str, membership: Path = _MEMBERSHIP, root: Path = _GROUPS) -> Iterator[Path]:
    """Yield the folders of this process's group and of all groups above it, innermost first.

    A container may see only its own group, as the root of the tree.

    Args:
        controller: such as `memory`.
        membership: the file that names the groups.
        root: where the trees are mounted.
    """
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, group in (line for line in lines if len(line) == 3):
        if controllers == "":
            mounts = [root, root / "unified"]
        elif controller in controllers.split(","):
            mounts = [root / controllers, root / controller]
        else:
            continue
        for mount in dict.fromkeys(mounts):
            place = mount / os.path.normpath("/" + group).lstrip("/")
            while True:
                if place.is_dir():
                    yield place
                if place == mount:
                    break
                place = place.parent


def _quota(folder: Path) -> float | None:
    """Return the cores that a group may use on average."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        quota, period = str(_number(folder / "cpu.cfs_quota_us")), str(_number(folder / "cpu.cfs_period_us"))
    try:
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
    except ValueError:
        return None  # "max" or absent


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None  # "max" or absent


def gpu_numbers(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> list[int]:
    """Return the numbers of this machine's NVIDIA GPUs, unless they are all hidden from this process.

    The driver's device files name them: PyTorch and NVML list none where the driver does not work.
    """
    hidden = environment.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1", "NoDevFiles"):
        return []
    numbers = (re.fullmatch(r"nvidia(\d+)", path.name) for path in devices.glob("nvidia*"))
    return sorted(int(number[1]) for number in numbers if number)
