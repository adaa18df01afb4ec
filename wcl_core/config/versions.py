"""Parsing of specs of any version, and their JSON values.

A resolved spec has all fields, in the current version.  A stored one, of a row or a checkpoint, has the lowest version
that holds it, so that workers of older versions can run it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import TypeAdapter

from wcl_core.config.evaluate import EvaluateSpec
from wcl_core.config.pretrain import PretrainSpec

SPEC_VERSION = 2
SPEC_VERSIONS = (1, 2)  # that this code runs

Kind = Literal["pretrain", "evaluate"]
Spec = PretrainSpec | EvaluateSpec
_ADAPTERS: dict[str, TypeAdapter[Any]] = {"pretrain": TypeAdapter(PretrainSpec), "evaluate": TypeAdapter(EvaluateSpec)}

# Version 2 added these fields, which version 1 leaves out, and `auto` as a size.
_SINCE_2: dict[str, Any] = {"device": "auto", "execution": "auto", "nodes": 1}
_SIZES = ("batch_size", "micro_batch_size")
# Later fields of version 2, which a stored spec has only where they are set.
_OPTIONAL: dict[str, Any] = {"weights": None, "restarts": []}


def _to_2(spec: dict[str, Any]) -> dict[str, Any]:
    return spec | {"spec_version": 2}


# Pure dict-to-dict functions: UPCASTERS[n] turns a spec of version n into one of version n + 1.
UPCASTERS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _to_2}


def parse_spec(kind: Kind, data: dict[str, Any]) -> Spec:
    """Validate a spec as it was sent; an older version is upgraded first.

    Args:
        kind: the kind of job that the spec is for.
        data: the spec as JSON values.

    Returns:
        The frozen spec with every default filled in.

    Raises:
        pydantic.ValidationError: the spec is invalid; the error has one entry per wrong field.
    """
    version = data.get("spec_version", SPEC_VERSION)
    while isinstance(version, int) and version in UPCASTERS:
        data = UPCASTERS[version](dict(data))
        version = data["spec_version"]
    spec: Spec = _ADAPTERS[kind].validate_python(data)
    return spec


def resolve_spec(spec: Spec) -> dict[str, Any]:
    """Return the spec as JSON values with all defaults filled in."""
    return spec.model_dump(mode="json")


def version_of(resolved: Mapping[str, Any]) -> int:
    """Return the lowest version that holds a resolved spec."""
    is_new = any(resolved.get(name, default) != default for name, default in (_SINCE_2 | _OPTIONAL).items())
    return 2 if is_new or any(resolved.get(name) == "auto" for name in _SIZES) else 1


def stored_spec(resolved: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved spec in the lowest version that holds it."""
    stored = {name: value for name, value in resolved.items() if name not in _OPTIONAL or value != _OPTIONAL[name]}
    if version_of(resolved) > 1:
        return stored
    return {name: value for name, value in stored.items() if name not in _SINCE_2} | {"spec_version": 1}


def completed_spec(stored: dict[str, Any]) -> dict[str, Any]:
    """Return a stored spec in the current version, with the fields that its version leaves out."""
    if stored.get("spec_version") not in SPEC_VERSIONS:
        return stored
    fields = (EvaluateSpec if "features" in stored else PretrainSpec).model_fields
    left_out = _OPTIONAL | (_SINCE_2 if stored["spec_version"] == 1 else {})
    every = stored | {name: stored.get(name, default) for name, default in left_out.items() if name in fields}
    places = {name: place for place, name in enumerate(fields)}
    return dict(sorted(_to_2(every).items(), key=lambda item: places.get(item[0], len(places))))
