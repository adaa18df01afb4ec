"""Parsing of specs of any version, and their JSON values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import TypeAdapter

from wcl_core.config.evaluate import EvaluateSpec
from wcl_core.config.pretrain import PretrainSpec

SPEC_VERSION = 1
SPEC_VERSIONS = (1,)

Kind = Literal["pretrain", "evaluate"]
Spec = PretrainSpec | EvaluateSpec
_ADAPTERS: dict[str, TypeAdapter[Any]] = {"pretrain": TypeAdapter(PretrainSpec), "evaluate": TypeAdapter(EvaluateSpec)}

# Pure dict-to-dict functions: UPCASTERS[n] turns a spec of version n into one of version n + 1.
UPCASTERS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


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
    """Return the spec as JSON values with all defaults filled in, as a job row and a checkpoint store it."""
    return spec.model_dump(mode="json")
