"""The limits of control groups: in trees of both versions that the test writes, and in real groups where root may."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wcl_core.limits import groups, memory_bytes, num_cores

_GIB = 1 << 30
_GROUPS = Path("/sys/fs/cgroup")


def write(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """Write a tree; return the file that names the groups, and the root of the tree."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root / "membership", root / "groups"


@pytest.mark.parametrize(
    ("files", "memory", "cores"),
    [
        pytest.param(
            {"membership": "0::/", "groups/memory.max": "max", "groups/cpu.max": "max 100000"}, 8, 8, id="none"
        ),
        pytest.param(
            {"membership": "0::/", "groups/memory.max": str(3 * _GIB), "groups/cpu.max": "150000 100000"}, 3, 2, id="v2"
        ),
        pytest.param(
            {
                "membership": "0::/user/job",
                "groups/user/memory.max": str(2 * _GIB),
                "groups/user/cpu.max": "100000 100000",
                "groups/user/job/memory.max": str(3 * _GIB),
                "groups/user/job/cpu.max": "max 100000",
            },
            2,
            1,
            id="v2, a group above",
        ),
        pytest.param(
            {
                "membership": "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc",
                "groups/memory/docker/abc/memory.limit_in_bytes": str(3 * _GIB),
                "groups/memory/memory.limit_in_bytes": "9223372036854771712",
                "groups/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "50000",
                "groups/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
                "groups/cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "groups/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            3,
            1,
            id="v1",
        ),
        pytest.param(
            {
                "membership": "4:memory:/docker/not-seen-here\n1:cpu:/docker/not-seen-here\n0::/",
                "groups/memory/memory.limit_in_bytes": str(3 * _GIB),
                "groups/cpu/cpu.cfs_quota_us": "300000",
                "groups/cpu/cpu.cfs_period_us": "100000",
            },
            3,
            3,
            id="v1, in a container",
        ),
        pytest.param(
            {"membership": "junk\n0::/../..\n", "groups/memory.max": "junk", "groups/cpu.max": "0"}, 8, 8, id="junk"
        ),
        pytest.param({"membership": "0::/", "groups/memory.max": str(99 * _GIB)}, 8, 8, id="above the machine's"),
    ],
)
def test_the_smallest_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], memory: int, cores: int
) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 8 * _GIB // 4096, "SC_PAGE_SIZE": 4096}.__getitem__)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    membership, root = write(tmp_path, files)

    assert memory_bytes(membership, root) == memory * _GIB
    assert num_cores(membership, root) == cores
    assert memory_bytes(tmp_path / "absent", root) == 8 * _GIB


@pytest.fixture
def small_group() -> Iterator[list[Path]]:
    """Create groups with 1 GiB and one core below those of this process."""
    folders = []
    try:
        for controller, name, text in (
            ("memory", "memory.limit_in_bytes", str(_GIB)),
            ("cpu", "cpu.cfs_quota_us", "100000"),
        ):
            folder = next(groups(controller)) / f"wcl-test-{os.getpid()}"
            folder.mkdir()
            folders.append(folder)
            (folder / name).write_text(text)
    except (OSError, StopIteration):
        for folder in folders:
            folder.rmdir()
        pytest.skip("NOT TESTED HERE: real control groups of version 1 need root; the written trees are tested")
    yield folders
    for folder in folders:
        folder.rmdir()


@pytest.mark.process
def test_real_groups_limit_the_announcement_the_check_and_the_threads(small_group: list[Path]) -> None:
    code = """
import torch
from wcl_core.__main__ import main
from wcl_core import limits
from wcl_core.data import folder
from worker.process import _rank_environment
main(["pretrain", "absent.yaml"])
print(limits.memory_bytes(), folder.memory_bytes(), torch.get_num_threads(), _rank_environment(0, 2)["OMP_NUM_THREADS"])
"""
    enter = " && ".join(f"echo $$ > {folder}/cgroup.procs" for folder in small_group)
    command = ["sh", "-c", f'{enter} && exec "$0" -c "$1"', sys.executable, code]
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, capture_output=True, text=True, env=clean)

    assert done.stdout.split() == [str(_GIB), str(_GIB), "1", "1"], done.stderr
