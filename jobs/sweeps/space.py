"""What a sweep tries: values of fields by their dotted names, every combination or random draws; pure functions."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationInfo, field_validator

from jobs.errors import FieldError, Invalid

MAX_TRIALS = 256
Settings = dict[str, Any]
_LARGEST = 1e12
_TRIES = 100  # draws for each trial that is wanted, before a space counts as too small


class Range(BaseModel):
    """Numbers between two bounds, drawn evenly, or evenly by their logarithm; whole ones with both bounds included."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    min: float = Field(ge=-_LARGEST, le=_LARGEST)
    max: float = Field(ge=-_LARGEST, le=_LARGEST)
    log: bool = False
    integer: bool = False

    @field_validator("max")
    @classmethod
    def _is_above(cls, value: float, info: ValidationInfo) -> float:
        if (low := info.data.get("min")) is not None and value <= low:
            raise ValueError(f"expected more than min, which is {low:g}")
        return value

    @field_validator("log")
    @classmethod
    def _has_logarithms(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("min", 1) <= 0:
            raise ValueError("expected min above 0, which a logarithm needs")
        return value

    @field_validator("integer")
    @classmethod
    def _holds_integers(cls, value: bool, info: ValidationInfo) -> bool:
        bounds = [info.data[name] for name in ("min", "max") if name in info.data]
        if value and any(bound != int(bound) for bound in bounds):
            raise ValueError("expected whole numbers as min and max")
        return value

    def at(self, share: float) -> float | int:
        """The value at a share of the way, in [0, 1); six significant digits are enough to tell and to type it."""
        high = self.max + 1 if self.integer else self.max
        value = self.min * (high / self.min) ** share if self.log else self.min + share * (high - self.min)
        return math.floor(value) if self.integer else min(self.max, max(self.min, float(f"{value:.6g}")))


Values = Annotated[list[JsonValue], Field(min_length=1, max_length=MAX_TRIALS)]
Parameters = Mapping[str, Values | Range]


def grid(parameters: Parameters) -> list[Settings]:
    """Every combination, the last parameter fastest.

    Raises:
        Invalid: a range, which has no combinations; or too many of them.
    """
    ranges = [name for name, values in parameters.items() if isinstance(values, Range)]
    if ranges:
        detail = "expected a list of values: a range needs `trials`, the number of random draws"
        raise Invalid([FieldError(pointer(name), detail) for name in ranges])
    lists = {name: values for name, values in parameters.items() if not isinstance(values, Range)}
    size = math.prod(len(values) for values in lists.values())
    if size > MAX_TRIALS:
        raise Invalid([FieldError("/parameters", f"expected at most {MAX_TRIALS} combinations, these are {size}")])
    return [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]


def draws(parameters: Parameters, trials: int, seed: int) -> list[Settings]:
    """Different settings at random: a function of its arguments alone, on every machine.

    Raises:
        Invalid: there are not so many.
    """
    found: dict[str, Settings] = {}
    for settings in _drawn(parameters, trials * _TRIES, seed):
        found.setdefault(repr(settings), settings)
        if len(found) == trials:
            return list(found.values())
    raise Invalid([FieldError("/trials", f"expected at most {len(found)}: there are no more different settings")])


def _drawn(parameters: Parameters, count: int, seed: int) -> Iterator[Settings]:
    for number in range(count):
        # A text as seed is hashed by its SHA-512, so each parameter has draws of its own that no other one moves.
        shares = {name: random.Random(f"{seed}/{name}/{number}").random() for name in parameters}
        yield {name: _value(values, shares[name]) for name, values in parameters.items()}


def _value(values: Values | Range, share: float) -> Any:
    return values.at(share) if isinstance(values, Range) else values[int(share * len(values))]


def pointer(name: str) -> str:
    """Where a parameter stands in the request."""
    return f"/parameters/{name.replace('~', '~0').replace('/', '~1')}"
