"""Where a job's spec differs from the preset that it started from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typing_extensions import TypedDict

from api.http.field_errors import escaped
from wcl_core.config import resolve_spec
from wcl_core.presets import presets


class Deviation(TypedDict):
    """One field: its JSON pointer in the resolved spec, its value in the preset of today and in the job."""

    pointer: str
    preset: Any
    job: Any


def of_preset(name: str | None, spec: dict[str, Any]) -> list[Deviation] | None:
    """Every field of a resolved spec that differs from the preset; None without a preset that is still known."""
    known = None if name is None else presets().get(name)
    return None if known is None else list(differences(resolve_spec(known), spec))


def differences(preset: Any, job: Any, pointer: str = "") -> Iterator[Deviation]:
    """Objects field by field, lists as a whole; a field that one side lacks is null there."""
    if isinstance(preset, dict) and isinstance(job, dict):
        for name in dict.fromkeys((*preset, *job)):
            yield from differences(preset.get(name), job.get(name), f"{pointer}/{escaped(name)}")
    elif preset != job:
        yield {"pointer": pointer, "preset": preset, "job": job}
