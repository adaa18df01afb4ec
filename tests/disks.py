"""Small real file systems for the tests: full, read-only and growing disks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disk:
    """A mounted file system in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, leave_bytes: int = 0) -> Path:
        """Write a file until the disk is full, but for so many bytes; return the file."""
        filler = self.folder / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                file.truncate(max(0, file.tell() - leave_bytes))
        return filler

    def resize(self, size: str) -> None:
        """Give the disk another size, such as `64m`."""
        self._remount(f"size={size}")

    def make_read_only(self, is_read_only: bool = True) -> None:
        self._remount("ro" if is_read_only else "rw")

    def _remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", self.folder], check=True)


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Disk]:
    """Mount a file system of this size on a folder; skip the test where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("NOT TESTED HERE: a small file system needs the program mount")
    if done.returncode:
        pytest.skip(f"NOT TESTED HERE: a small file system needs the right to mount ({done.stderr.strip()})")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
