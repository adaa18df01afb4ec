"""What the tests of chaos stand on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.stage import Theatre, theatre


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """Servers that may be restarted, apart from those of the other tests."""
    with theatre(tmp_path_factory.mktemp("chaos")) as found:
        yield found
