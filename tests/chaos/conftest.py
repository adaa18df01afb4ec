"""Fixtures of the chaos tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.stage import Theatre, theatre


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """Start servers that a test may restart, separate from those of other tests."""
    with theatre(tmp_path_factory.mktemp("chaos")) as result:
        yield result
