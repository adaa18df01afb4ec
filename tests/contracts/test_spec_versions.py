"""Stored specs of every version still parse, upcasters are pure, presets are whole."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from wcl_core import config
from wcl_core.presets import presets

EXAMPLES = sorted((Path(__file__).parent / "specs").glob("*.json"))


def test_there_is_an_example_of_every_version_and_kind() -> None:
    names = {path.stem for path in EXAMPLES}

    assert {f"{kind}-v{version}" for kind in ("pretrain", "evaluate") for version in config.SPEC_VERSIONS} <= names


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_stored_example_parses_to_its_stored_resolution(path: Path) -> None:
    """The files hold a spec as sent and as stored when the version was new; a changed default fails here.

    A new field must be left out where it has its default: workers of the version refuse unknown fields.
    """
    example = json.loads(path.read_text())

    resolved = config.resolve_spec(config.parse_spec(example["kind"], example["sent"]))

    assert config.stored_spec(resolved) == example["resolved"]
    assert path.stem.endswith(f"-v{config.version_of(resolved)}")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_resolved_spec_is_a_fixed_point(path: Path) -> None:
    example = json.loads(path.read_text())
    resolved = example["resolved"]
    before = copy.deepcopy(resolved)

    spec = config.parse_spec(example["kind"], resolved)

    assert config.stored_spec(config.resolve_spec(spec)) == resolved
    assert config.completed_spec(resolved) == config.resolve_spec(spec)
    assert resolved == before


def test_an_upcaster_upgrades_an_older_version_and_keeps_its_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(data: dict[str, object]) -> dict[str, object]:
        data["data"] = {"name": data.pop("dataset")}
        data["spec_version"] = 1
        return data

    monkeypatch.setitem(config.UPCASTERS, 0, rename)
    sent = {"spec_version": 0, "dataset": "digits"}

    spec = config.parse_spec("pretrain", sent)

    assert spec.data.name == "digits"
    assert sent == {"spec_version": 0, "dataset": "digits"}


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(ValidationError):
        config.parse_spec("pretrain", {"spec_version": 99, "data": {"name": "digits"}})


@pytest.mark.parametrize("name", sorted(presets()))
def test_preset_is_a_complete_spec(name: str) -> None:
    preset = presets()[name]

    assert config.parse_spec("pretrain", config.resolve_spec(preset)) == preset
