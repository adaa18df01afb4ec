"""The guards of `./run mutants`, which takes minutes: their text and their tests exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.guards import GUARDS, Guard

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_every_guard_and_its_tests_exist(guard: Guard) -> None:
    assert (ROOT / guard.path).read_text().count(guard.text) == 1
    for test in (name for name in guard.tests if not name.startswith("-")):
        path, function = test.split("[")[0].split("::")
        assert f"def {function}(" in (ROOT / path).read_text(), test
