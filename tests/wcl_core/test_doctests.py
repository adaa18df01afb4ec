"""The examples in the docstrings of the mathematics print the stated output."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "wcl_core.methods.base",
        "wcl_core.methods.losses",
        "wcl_core.methods.multicrop",
        "wcl_core.methods.weak_labels",
        "wcl_core.schedule",
        "wcl_core.training.optim",
    ],
)
def test_docstring_examples_print_the_stated_output(name: str) -> None:
    result = doctest.testmod(import_module(name))

    assert result.attempted > 0
    assert result.failed == 0
