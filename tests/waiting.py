"""Waiting for other processes, without longer sleeps than necessary, and clocks that a test sets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

# The pause after a look is a share of the wait, within these bounds.  A look at a database or at all processes takes
# some milliseconds, and six processes of tests wait for most of their time.
_LOOK_SECONDS, _SHARE, _LONGEST_SECONDS = 0.03, 0.04, 0.15
PATIENCE = 240.0  # seconds that only bound a failure: a busy machine is ten times slower than a quiet one


def eventually(look: Callable[[], T], what: str = "it", seconds: float = PATIENCE) -> T:
    """Return the first true value of `look`."""
    began = time.monotonic()
    while not (value := look()):
        waited = time.monotonic() - began
        assert waited < seconds, f"{what} did not happen in {seconds:g} s"
        time.sleep(min(max(_LOOK_SECONDS, _SHARE * waited), _LONGEST_SECONDS))
    return value


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine from an event loop of another thread: Playwright's runs in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def patch_clock(monkeypatch: pytest.MonkeyPatch, module: ModuleType, **functions: Callable[..., Any]) -> None:
    """Replace functions of `time` for one module; a patch of `time` itself would reach every thread of this process."""
    monkeypatch.setattr(module, "time", SimpleNamespace(**vars(time) | functions))
