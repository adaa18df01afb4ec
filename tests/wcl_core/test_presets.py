"""Presets: their names, complete specs, twins that differ in one field, and learning rates by the stated rules."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from wcl_core.config import parse_spec, resolve_spec
from wcl_core.config.overlay import overlaid, with_fields
from wcl_core.presets import described_presets, presets
from wcl_core.schedule import base_learning_rate

RECIPES = ("digits", "cifar10", "small", *(f"{heads}-{n}" for heads in ("paper", "code") for n in (100, 200, 800)))
PHOTOS = {"photos-quick", "photos", "photos-large"}
NAMES = {"digits-cpu", "cifar10-cpu", *(f"{method}-{recipe}" for method in ("wcl", "simclr") for recipe in RECIPES)}
NAMES |= PHOTOS | {f"simclr-{name}" for name in PHOTOS}


def test_names_and_descriptions() -> None:
    assert presets().keys() == NAMES
    lines = [preset.description for preset in described_presets().values()]
    assert len(set(lines)) == len(lines)
    assert all(line and len(line) < 160 and "\n" not in line for line in lines)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_preset_equals_its_spec_after_parsing(name: str) -> None:
    spec = presets()[name]
    assert parse_spec("pretrain", resolve_spec(spec)) == spec


@pytest.mark.parametrize("name", sorted({name for name in NAMES if name.startswith("wcl-")} | PHOTOS))
def test_a_twin_differs_in_the_method_alone(name: str) -> None:
    spec, twin = (resolve_spec(presets()[of]) for of in (name, f"simclr-{name.removeprefix('wcl-')}"))
    assert {field for field in spec if spec[field] != twin[field]} == {"method"}
    assert (spec["method"], twin["method"]) == ("wcl", "simclr")


@pytest.mark.parametrize("epochs", [100, 200, 800])
def test_the_official_recipes(epochs: int) -> None:
    paper, code = (presets()[f"wcl-{name}-{epochs}"] for name in ("paper", "code"))
    for spec, heads in ((paper, (2048, 128)), (code, (4096, 256))):
        assert (spec.heads.hidden_dim, spec.heads.output_dim) == heads
        assert (spec.epochs, spec.batch_size, spec.data.image_size) == (epochs, 4096, 224)
        assert (spec.backbone.name, spec.backbone.stem) == ("resnet50", "imagenet")
        assert (spec.warmup_epochs, spec.weak_augmentation_epochs) == (10, 10)
        assert (spec.loss.temperature, spec.loss.weak_temperature, spec.loss.weak_weight) == (0.1, 0.1, 1)
        assert (spec.loss.detach_keys, spec.optimizer.weight_decay, spec.optimizer.momentum) == (True, 1e-6, 0.9)
        assert (spec.augmentation.scale_min, spec.weak_augmentation.scale_min) == (0.08, 0.2)
        assert base_learning_rate(spec.optimizer, spec.batch_size) == pytest.approx(4.8)
    assert (paper.optimizer.lars_exclusion, code.optimizer.lars_exclusion) == ("one-dimensional", "official-names")


@pytest.mark.parametrize("method", ["wcl", "simclr"])
def test_the_digits_recipe_has_the_values_of_the_search(method: str) -> None:
    """The values that each method chose on held-out images; twins agree in their common fields."""
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "methods-digits.json"
    spec = resolve_spec(presets()[f"{method}-digits"])
    for path, value in json.loads(results.read_text())["chosen"][method].items():
        section, field = path.split(".")
        if method == "wcl" or not field.startswith("weak_") or section != "loss":
            assert spec[section][field] == value, path


_CHANGES = {
    "epochs": (1, 6, 1000),
    "batch_size": (8, 100, 4096),
    "data.image_size": (8, 32, 224),
    "backbone.name": ("tiny", "resnet18", "resnet50"),
    "data.name": ("digits", "cifar10", "photos"),
    "processes": (1, 2, 3),
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_one_changed_field_gives_a_spec_or_names_the_field_to_set(name: str) -> None:
    base = resolve_spec(presets()[name])
    for field, values in _CHANGES.items():
        for value in values:
            changed = overlaid(base, with_fields({}, {field: value}))
            try:
                parse_spec("pretrain", changed)
            except ValidationError as error:
                (problem,) = error.errors()
                advice = re.search(r"use a (\w+) of (\d+)$", problem["msg"])
                assert advice, problem
                parse_spec("pretrain", changed | {advice[1]: int(advice[2])})


def test_the_rate_follows_the_global_batch() -> None:
    for name, batch, rate in (("wcl-small", 256, 1.2), ("wcl-cifar10", 512, 0.12), ("wcl-digits", 256, 0.12)):
        spec = presets()[name]
        assert spec.batch_size == batch
        assert base_learning_rate(spec.optimizer, batch) == pytest.approx(rate)
        growth = 2 if spec.optimizer.scaling == "sqrt" else 4
        assert base_learning_rate(spec.optimizer, 4 * batch) == pytest.approx(growth * rate)


@pytest.mark.process
def test_presets_import_without_torch() -> None:
    code = "import sys, wcl_core.presets; wcl_core.presets.presets(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
