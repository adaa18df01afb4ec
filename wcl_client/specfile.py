"""The overrides of `--set` over a spec file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from wcl_core.spec_files import SpecFileError, check_plain, unique_keys

_MAX_DOTS = 20


def apply_overrides(spec: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the spec with each override `a.b=value` applied; a value that is not JSON is text.

    Raises:
        SpecFileError: an override is not `NAME=VALUE`, or a parent of its field is not a mapping.
    """
    # Imported here because the package loads pydantic, which most commands do not need.
    from wcl_core.config.overlay import blocking_parent, with_fields

    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name or name.count(".") > _MAX_DOTS:
            raise SpecFileError(f"--set {override}: expected NAME=VALUE, for example --set loss.temperature=0.2")
        if parent := blocking_parent(spec, name):
            raise SpecFileError(f"--set {override}: {parent} is not a mapping, so it has no field {name}")
        value = _value(text)
        try:
            check_plain(value, name)
            spec = with_fields(spec, {name: value})
        except ValueError as error:
            raise SpecFileError(f"--set {override}: {error}") from error
    return spec


def _value(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        return text
