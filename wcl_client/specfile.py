"""Spec files and the overrides of `--set`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class SpecFileError(ValueError):
    """A spec file or an override is wrong; the message names the place."""


def read_spec(path: Path) -> dict[str, Any]:
    """Read a spec from a .json, .yaml or .yml file.

    Raises:
        SpecFileError: the file cannot be read, or it does not hold a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecFileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecFileError(f"{path}: expected JSON or YAML in UTF-8, but the file is not UTF-8 text") from error
    data = _parse(text, path)
    if not isinstance(data, dict):
        raise SpecFileError(f"{path}: expected a mapping of fields, but the file holds a {type(data).__name__}")
    return data


def _parse(text: str, path: Path) -> Any:
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
    """Return the spec with each override `a.b=value` applied; a value that is not JSON is text.

    Raises:
        SpecFileError: an override is not `NAME=VALUE`, or a parent of its field is not a mapping.
    """
    # Imported here because the package loads pydantic, which most commands do not need.
    from wcl_core.config.overlay import blocking_parent, with_fields

    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise SpecFileError(f"--set {override}: expected NAME=VALUE, for example --set loss.temperature=0.2")
        if parent := blocking_parent(spec, name):
            raise SpecFileError(f"--set {override}: {parent} is not a mapping, so it has no field {name}")
        spec = with_fields(spec, {name: _value(text)})
    return spec


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
