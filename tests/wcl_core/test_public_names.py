"""The public names of `wcl_core`: they are loaded lazily, and no import of a module hides one of them."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import wcl_core

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
NAMES = (
    "nt_xent, weak_label_loss, swapped_weak_label_loss, weak_labels, nearest_neighbours, components, "
    "LARS, param_groups, pretrain, evaluate, load_backbone"
)
# A class or a function of that name, and not a module.
CHECK = "\n".join(f"assert callable({name}) and {name}.__name__ == {name!r}" for name in NAMES.split(", "))


def run_python(code: str) -> None:
    """Run the code in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr


def test_all_lists_the_public_names() -> None:
    assert sorted(wcl_core.__all__) == sorted(NAMES.split(", "))
    assert set(wcl_core.__all__) <= set(dir(wcl_core))


def test_no_module_has_a_public_name() -> None:
    assert {module.name for module in pkgutil.iter_modules(wcl_core.__path__)}.isdisjoint(wcl_core.__all__)


# Each order in a fork of a process that has imported the other libraries, which takes 4 s of a core.
ORDERS = [
    "",
    "import wcl_core.evaluation.knn, wcl_core.methods.weak_labels, wcl_core.training.pretrain",
    "import wcl_core\nwcl_core.evaluate\nimport wcl_core.evaluation.run",
]
FORKS = """
import os, sys
import torch, torchvision
assert "wcl_core" not in sys.modules
for before in {orders!r}:
    if (child := os.fork()) == 0:
        exec(before + {check!r}, {{}})
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, before
"""


def test_public_names_are_found_in_every_import_order() -> None:
    check = f"\nfrom wcl_core import {NAMES}\n{CHECK}\nfrom wcl_core import *\n{CHECK}"

    run_python(FORKS.format(orders=ORDERS, check=check))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'wcl_core' has no attribute 'nonsense'$"):
        wcl_core.nonsense  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("module", ["wcl_core", "wcl_core.config", "wcl_core.protocol"])
def test_the_torch_free_modules_do_not_load_torch(module: str) -> None:
    run_python(f"import sys, {module}\nassert 'torch' not in sys.modules, 'torch was imported'")
