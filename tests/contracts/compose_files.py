"""Compose files as Docker Compose merges them, by the rules of its reference for what these files use.

Mappings are merged, lists are joined, and all other values are replaced; so are commands and the test of a health
check.  Volumes of a service have one mount for each target.  `!reset` removes what it stands for, `!override`
replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
_REPLACED = ("command", "entrypoint", "test")


@dataclass
class _Tagged:
    tag: str
    value: Any


class _Loader(yaml.SafeLoader):
    """YAML with the tags of Compose."""


def _tagged(loader: _Loader, node: yaml.Node) -> _Tagged:
    if isinstance(node, yaml.MappingNode):
        return _Tagged(node.tag, loader.construct_mapping(node, deep=True))
    if isinstance(node, yaml.SequenceNode):
        return _Tagged(node.tag, loader.construct_sequence(node, deep=True))
    return _Tagged(node.tag, None)


for _tag in ("!reset", "!override"):
    _Loader.add_constructor(_tag, _tagged)


def merged(*names: str) -> dict[str, Any]:
    """Return the model of some files, in their order on the command line."""
    model: dict[str, Any] = {}
    for name in names:
        model = _merge(model, _read(name))
    return {key: value for key, value in model.items() if not key.startswith("x-")}


@cache
def _read(name: str) -> dict[str, Any]:
    return yaml.load((ROOT / name).read_text(), _Loader)  # noqa: S506 (a safe loader)


def _merge(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in overlay.items():
        if isinstance(value, _Tagged):
            result.pop(key, None)
            if value.tag == "!override":
                result[key] = value.value
        elif isinstance(value, dict) and isinstance(base.get(key, {}), dict):
            result[key] = _merge(base.get(key, {}), value)
        elif isinstance(value, list) and key in base and key not in _REPLACED:
            kept = base[key]
            if key == "volumes":
                targets = {_target(each) for each in value}
                kept = [each for each in kept if _target(each) not in targets]
            result[key] = [*kept, *(each for each in value if each not in kept)]
        else:
            result[key] = value
    return result


def _target(volume: str | dict[str, Any]) -> str:
    return str(volume["target"]) if isinstance(volume, dict) else volume.split(":")[1]
