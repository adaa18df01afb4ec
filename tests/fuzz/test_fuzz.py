"""A slice of every fuzzer."""

from __future__ import annotations

import importlib

import pytest

from tests.fuzz.__main__ import FUZZERS, fuzz

pytestmark = pytest.mark.process


@pytest.mark.parametrize("name", FUZZERS)
def test_a_slice_of_each_fuzzer_finds_no_failure(name: str) -> None:
    tally = fuzz(name, importlib.import_module(f"tests.fuzz.{name}").SLICE, seed=1)

    assert not tally.failures, tally.text()
    assert tally.outcomes
