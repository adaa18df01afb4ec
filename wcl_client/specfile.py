"""Spec files and `--set` overrides: what `wcl submit` turns into a request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class SpecFileError(ValueError):
    """The file or an override cannot be read; the message names the place."""


def read_spec(path: Path) -> dict[str, Any]:
    """A spec from a .json, .yaml or .yml file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecFileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecFileError(f"{path}: expected JSON or YAML in UTF-8; this is no such text") from error
    data = _decoded(text, path)
    if not isinstance(data, dict):
        raise SpecFileError(f"{path}: a spec is a mapping, this is a {type(data).__name__}")
    return data


def _decoded(text: str, path: Path) -> Any:
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except ValueError as error:
            raise SpecFileError(f"{path}: {error}") from error
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecFileError(f"{path}: {error}") from error


def apply_overrides(spec: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`a.b=value` for each override; values are JSON where they parse as such, text otherwise."""
    # Imported here, since the package loads pydantic, which most commands do without.
    from wcl_core.config.overlay import blocking_parent, with_fields

    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise SpecFileError(f"--set {override}: expected NAME=VALUE, for example --set loss.temperature=0.2")
        if parent := blocking_parent(spec, name):
            raise SpecFileError(f"--set {override}: {parent} is not a mapping")
        spec = with_fields(spec, {name: _value(text)})
    return spec


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
