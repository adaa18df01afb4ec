"""Waiting for other processes, without longer sleeps than necessary."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_LOOK_SECONDS = 0.05


def eventually(look: Callable[[], T], what: str = "it", seconds: float = 90.0) -> T:
    """Return the first true value of `look`; `seconds` only bounds a failure, so it is generous."""
    deadline = time.monotonic() + seconds
    while not (value := look()):
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds:g} s"
        time.sleep(_LOOK_SECONDS)
    return value
