"""The overrides of `--set` over a spec file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from wcl_core.spec_files import SpecFileError, check_plain, unique_keys

_MAX_DOTS = 20


def apply_overrides(spec: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the spec with each override `a.b=value` applied; a value that is not JSON is text.

    Fields of the spec that follow an overridden one keep its shape; see `wcl_core.config.overlay`.

    Raises:
        SpecFileError: an override is not `NAME=VALUE`, or a parent of its field is not a mapping.
    """
    # Imported here because the package loads pydantic, which most commands do not need.
    from wcl_core.config.overlay import blocking_parent, followed, with_fields

    values = [_named_value(override) for override in overrides]
    spec = followed(spec, dict(values))
    for override, (name, value) in zip(overrides, values, strict=True):
        if parent := blocking_parent(spec, name):
            raise SpecFileError(f"--set {override}: {parent} is not a mapping, so it has no field {name}")
        spec = with_fields(spec, {name: value})
    return spec


def _named_value(override: str) -> tuple[str, Any]:
    name, equals, text = override.partition("=")
    if not equals or not name or name.count(".") > _MAX_DOTS:
        raise SpecFileError(f"--set {override}: expected NAME=VALUE, for example --set loss.temperature=0.2")
    value = _value(text)
    try:
        check_plain(value, name)
    except ValueError as error:
        raise SpecFileError(f"--set {override}: {error}") from error
    return name, value


def _value(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        return text
