"""What the models of a spec are made of: their common rules, and fields that several of them have."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

DatasetName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$",
        description="The registered name of a dataset.",
        examples=["digits"],
    ),
]
ListName = Annotated[
    str,
    Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$", description="The name of a list.", examples=["official-1"]),
]
Seed = Annotated[int, Field(ge=0, lt=2**31, description="Seed of initialisation, data order and augmentation.")]


class SpecModel(BaseModel):
    """Frozen, unknown fields refused, no infinities."""

    # Defaults are validated too: one that contradicts another field is refused, and 10 becomes 10.0 as a sent 10 does.
    # Rules between fields belong to the later one, so that the error names it.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


_V = TypeVar("_V", bound=tuple[object, ...])


def without_repeats(values: _V) -> _V:
    """The same values; for validators.

    Raises:
        ValueError: one of them is there twice.
    """
    if len(set(values)) != len(values):
        raise ValueError("must not repeat a value")
    return values
