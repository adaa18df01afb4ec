"""The base class of all parts of a spec, and fields that several parts have."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

DATASET_NAME = r"^[a-z0-9][a-z0-9_.-]{0,63}$"

DatasetName = Annotated[
    str,
    Field(
        pattern=DATASET_NAME,
        description="Registered name of a dataset.",
        examples=["digits"],
    ),
]
ListName = Annotated[
    str,
    Field(
        pattern=DATASET_NAME,
        description="Name of a list of labelled images.",
        examples=["official-1"],
    ),
]
Device = Annotated[
    Literal["auto", "cuda", "cpu"],
    Field(
        description=(
            "`auto`: the job's GPUs, and the CPU for a job without GPUs; `cuda`: GPUs only; `cpu`: the CPU, also on a "
            "machine with GPUs. A run that cannot use its GPUs fails and never falls back to the CPU."
        )
    ),
]
Seed = Annotated[int, Field(ge=0, lt=2**31, description="Seed of initialisation, data order and augmentation.")]


def proposed_name(text: str) -> str:
    """Return a dataset name that is close to a text."""
    return re.sub(r"[^a-z0-9_.-]+", "-", text.lower()).strip("-._")[:64] or "images"


class SpecModel(BaseModel):
    """A frozen part of a spec, which refuses unknown fields, infinities and NaN."""

    # Defaults are validated too: a default that contradicts another field is refused, and a default of 10 becomes 10.0.
    # A rule between two fields is a validator of the later one, so that the error names it.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


_V = TypeVar("_V", bound=tuple[object, ...])


def without_repeats(values: _V) -> _V:
    """Return the same values; for validators.

    Raises:
        ValueError: a value occurs twice.
    """
    repeated = next((value for place, value in enumerate(values) if value in values[:place]), None)
    if len(set(values)) != len(values):
        raise ValueError(f"{repeated} occurs twice; remove one of the two")
    return values
