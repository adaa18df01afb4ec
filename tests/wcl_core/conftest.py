"""Fixtures of the tests of `wcl_core`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disks import mounted


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 256 KiB; skip the test if this user cannot mount one."""
    with mounted(tmp_path / "small", "256k") as disk:
        yield disk.folder
