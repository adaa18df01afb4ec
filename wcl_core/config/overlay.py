"""Pure functions over nested spec dicts: lay one over another, set fields by dotted names, compare two.

A dotted name, such as `loss.temperature`, names a field below objects.  Objects are taken field by field; lists and all
other values are taken whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `overrides` laid over it, objects field by field."""
    result = dict(base)
    for name, value in overrides.items():
        below = result.get(name)
        both_are_objects = isinstance(below, dict) and isinstance(value, dict)
        result[name] = merged(below, value) if both_are_objects else value  # type: ignore[arg-type]
    return result


def with_fields(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with values set at dotted names; an object replaces any other value along the path."""
    result = dict(base)
    for name, value in values.items():
        *parents, last = name.split(".")
        here = result
        for parent in parents:
            below = here.get(parent)
            here[parent] = dict(below) if isinstance(below, dict) else {}
            here = here[parent]
        here[last] = value
    return result


def blocking_parent(base: Mapping[str, Any], name: str) -> str | None:
    """Return the first parent of a dotted name that holds a value other than an object; None without one."""
    here: Any = base
    for parent in name.split(".")[:-1]:
        if parent not in here:
            return None
        here = here[parent]
        if not isinstance(here, Mapping):
            return parent
    return None


def leaves(spec: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every field by its dotted name; a list or an empty object is one field."""
    for name, value in spec.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def changed_fields(spec: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `spec` that differ from `base`, nested as they are in `spec`."""
    result: dict[str, Any] = {}
    for name, value in spec.items():
        below = base.get(name)
        if isinstance(value, Mapping) and value and isinstance(below, Mapping):
            if inner := changed_fields(value, below):
                result[name] = inner
        elif value != below:
            result[name] = value
    return result


def differences(first: Any, second: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield path, first value and second value of every field that differs; a missing field counts as null."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in dict.fromkeys((*first, *second)):
            yield from differences(first.get(name), second.get(name), (*path, name))
    elif first != second:
        yield path, first, second
