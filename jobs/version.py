"""The version of this installation."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final


def _installed() -> str:
    try:
        return version("wcl-service")
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown"


VERSION: Final = _installed()
