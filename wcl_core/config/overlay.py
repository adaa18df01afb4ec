"""Pure functions over nested spec dicts: lay one over another, set fields by dotted names, compare two.

A dotted name, such as `loss.temperature`, names a field below objects.  Objects are taken field by field; lists and all
other values are taken whole.

A spec that is changed keeps its shape: some fields follow another one, unless the change sets them too.

    epochs ──► warmup_epochs, weak_augmentation_epochs    keep their share of the run
    backbone.name, method, features.kind ──► the fields that belong to the former choice alone get their defaults
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wcl_core.config.network import BackboneConfig

_LENGTHS = ("warmup_epochs", "weak_augmentation_epochs")
_ABSENT: Any = object()
# By choice: the fields that belong to one value of it, with their defaults.
_OWN_FIELDS: dict[str, dict[str, Any]] = {
    "backbone.name": {
        f"backbone.{name}": BackboneConfig.model_fields[name].default for name in ("width", "patch_size", "variant")
    },
    "method": {"method_options": {}},
    "features.kind": {"features.checkpoint_id": _ABSENT, "features.backbone": _ABSENT},
}
_LEADING = ("epochs", *_OWN_FIELDS)


def merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `overrides` laid over it, objects field by field."""
    result = dict(base)
    for name, value in overrides.items():
        below = result.get(name)
        both_are_objects = isinstance(below, dict) and isinstance(value, dict)
        result[name] = merged(below, value) if both_are_objects else value  # type: ignore[arg-type]
    return result


def overlaid(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec with `changes` laid over it; fields that follow a changed one keep the shape of `base`."""
    return merged(followed(base, dict(leaves(changes))), changes)


def followed(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec whose fields follow others, for new values at dotted names; the new values are not set.

    Fields of `base` that `values` names are left alone.  Lengths follow only if `base` states its epochs.
    """
    moved = _lengths(base, values.get("epochs"))
    for choice, own in _OWN_FIELDS.items():
        if choice in values and values[choice] != _at(base, choice):
            moved |= {name: default for name, default in own.items() if _at(base, name) is not None}
    moved = {name: value for name, value in moved.items() if name not in values}
    kept = without(base, [name for name, value in moved.items() if value is _ABSENT])
    return with_fields(kept, {name: value for name, value in moved.items() if value is not _ABSENT})


def _lengths(base: Mapping[str, Any], epochs: Any) -> dict[str, Any]:
    """Return the lengths of a spec at another number of epochs."""
    whole = base.get("epochs")
    if not (_is_count(epochs) and _is_count(whole)) or epochs == whole:
        return {}
    lengths = {name: base[name] * epochs / whole for name in _LENGTHS if _is_number(base.get(name))}
    if "weak_augmentation_epochs" in lengths:
        lengths["weak_augmentation_epochs"] = int(lengths["weak_augmentation_epochs"])
    return lengths


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _at(spec: Mapping[str, Any], name: str) -> Any:
    """Return the value at a dotted name; None if there is none."""
    here: Any = spec
    for part in name.split("."):
        here = here.get(part) if isinstance(here, Mapping) else None
    return here


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


def without(base: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return `base` without the fields at dotted names."""
    result = dict(base)
    for name in names:
        parent, _, rest = name.partition(".")
        if not rest:
            result.pop(parent, None)
        elif isinstance(below := result.get(parent), Mapping):
            result[parent] = without(below, [rest])
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


def changes_from(base: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes that `overlaid` turns into `spec` again: a field that follows another one is left out."""
    return changed_fields(spec, shaped_like(base, spec))


def shaped_like(base: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with its following fields as they would be with the epochs and the choices of `spec`."""
    return followed(base, {name: value for name in _LEADING if (value := _at(spec, name)) is not None})


def differences(first: Any, second: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield path, first value and second value of every field that differs; a missing field counts as null."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in dict.fromkeys((*first, *second)):
            yield from differences(first.get(name), second.get(name), (*path, name))
    elif first != second:
        yield path, first, second
