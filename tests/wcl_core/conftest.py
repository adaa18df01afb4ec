"""Fixtures of the tests of `wcl_core`, and their skips where only a part of the packages is installed.

A machine that is lent for its GPU may have torch, torchvision, numpy, safetensors, pydantic and pytest only.  There a
module or a test that needs another package is skipped with its name.  With the service's packages nothing is skipped.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disks import mounted
from wcl_core.data import DataError

_HAS_ALL = importlib.util.find_spec("sqlalchemy") is not None
_ABSENT = re.compile(r"(?:ModuleNotFoundError|ImportError): (.*)")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Skip a module that cannot be imported for want of a package."""
    report: pytest.CollectReport = yield  # type: ignore[assignment]
    if report.failed and not _HAS_ALL and (absent := _ABSENT.findall(str(report.longrepr))):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {absent[-1]}")
    return report  # type: ignore[return-value]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Skip a test that fails for want of a package."""
    try:
        yield
    except (ImportError, DataError) as error:
        if _HAS_ALL or (isinstance(error, DataError) and "is not installed" not in str(error)):
            raise
        pytest.skip(str(error))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 256 KiB; skip the test if this user cannot mount one."""
    with mounted(tmp_path / "small", "256k") as disk:
        yield disk.folder
