"""Presets: complete specs to start from, and where a job's spec deviates from its preset."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from typing_extensions import TypedDict

from api.http.auth import Reader
from api.http.field_errors import escaped
from jobs.errors import FieldError, Invalid
from wcl_core.config import Kind, resolve_spec
from wcl_core.config.overlay import differences, overlaid, shaped_like, without
from wcl_core.presets import described_presets, presets

router = APIRouter(prefix="/v1/presets", tags=["catalog"])


class PresetResponse(BaseModel):
    """A complete spec to start from."""

    name: str
    kind: str
    description: str
    spec: dict[str, Any]


class Presets(BaseModel):
    """The small ones first."""

    items: list[PresetResponse]


@router.get("")
def list_presets(principal: Reader) -> Presets:
    """List the presets that `preset` of a new job may name."""
    return Presets(
        items=[
            PresetResponse(name=name, kind="pretrain", description=preset.description, spec=resolve_spec(preset.spec))
            for name, preset in described_presets().items()
        ]
    )


def preset_fields(name: str, kind: Kind) -> dict[str, Any]:
    """Return a preset's spec with all its fields.

    Raises:
        Invalid: there is no preset of this name and kind.
    """
    if kind != "pretrain":
        raise Invalid([FieldError("/preset", "presets are for jobs of the kind pretrain; leave this field out")])
    if name not in presets():
        raise Invalid([FieldError("/preset", f"there is no such preset; expected one of {', '.join(presets())}")])
    return resolve_spec(presets()[name])


def sent_spec(preset: str | None, kind: Kind, spec: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of a request with the fields of its preset, which leaves `processes` to the GPUs of the job.

    Raises:
        Invalid: there is no such preset.
    """
    return spec if preset is None else overlaid(without(preset_fields(preset, kind), ["processes"]), spec)


class PresetDeviation(TypedDict):
    """One field: its JSON pointer in the resolved spec, its value in the current preset, and its value in the job."""

    pointer: str
    preset: Any
    job: Any


def preset_deviations(name: str | None, spec: dict[str, Any]) -> list[PresetDeviation] | None:
    """Return every field of a resolved spec that differs from the preset; None if there is no such preset.

    A field that follows another one, such as the warm-up the epochs, differs only if it has another value.
    """
    preset = None if name is None else presets().get(name)
    if preset is None:
        return None
    fields = resolve_spec(preset)
    own = {each["pointer"] for each in between(shaped_like(fields, spec), spec)}
    return [each for each in between(fields, spec) if each["pointer"] in own]


def between(preset: dict[str, Any], spec: dict[str, Any]) -> list[PresetDeviation]:
    """Return every field that differs; a field that one side lacks is null there."""
    return [
        {"pointer": "".join(f"/{escaped(part)}" for part in path), "preset": expected, "job": value}
        for path, expected, value in differences(preset, spec)
    ]
