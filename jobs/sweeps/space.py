"""The search space of a sweep: values of fields by their dotted names, as a grid or as random draws; pure functions."""

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
_TRIES = 100  # draws for each trial, before a space is considered too small


class Range(BaseModel):
    """Numbers between two bounds, drawn uniformly or log-uniformly; integers include both bounds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    min: float = Field(ge=-_LARGEST, le=_LARGEST)
    max: float = Field(ge=-_LARGEST, le=_LARGEST)
    log: bool = False
    integer: bool = False

    @field_validator("max")
    @classmethod
    def _is_above(cls, value: float, info: ValidationInfo) -> float:
        if (low := info.data.get("min")) is not None and value <= low:
            raise ValueError(f"{value:g} is not above min; expected more than {low:g}")
        return value

    @field_validator("log")
    @classmethod
    def _has_logarithms(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("min", 1) <= 0:
            raise ValueError("expected min above 0, because log needs positive numbers")
        return value

    @field_validator("integer")
    @classmethod
    def _holds_integers(cls, value: bool, info: ValidationInfo) -> bool:
        bounds = [info.data[name] for name in ("min", "max") if name in info.data]
        if value and any(bound != int(bound) for bound in bounds):
            raise ValueError("expected whole numbers as min and max")
        return value

    def at(self, share: float) -> float | int:
        """Return the value at a share of the range, in [0, 1), rounded to six significant digits."""
        high = self.max + 1 if self.integer else self.max
        value = self.min * (high / self.min) ** share if self.log else self.min + share * (high - self.min)
        return math.floor(value) if self.integer else min(self.max, max(self.min, float(f"{value:.6g}")))


Values = Annotated[list[JsonValue], Field(min_length=1, max_length=MAX_TRIALS)]
Parameters = Mapping[str, Values | Range]


def grid(parameters: Parameters) -> list[Settings]:
    """Return every combination; the last parameter varies fastest.

    Raises:
        Invalid: a parameter is a range, or there are too many combinations.
    """
    ranges = [name for name, values in parameters.items() if isinstance(values, Range)]
    if ranges:
        detail = "expected a list of values; a range needs `trials`, the number of random draws"
        raise Invalid([FieldError(pointer(name), detail) for name in ranges])
    lists = {name: values for name, values in parameters.items() if not isinstance(values, Range)}
    size = math.prod(len(values) for values in lists.values())
    if size > MAX_TRIALS:
        raise Invalid([FieldError("/parameters", f"there are {size} combinations; expected at most {MAX_TRIALS}")])
    return [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]


def draws(parameters: Parameters, trials: int, seed: int) -> list[Settings]:
    """Return distinct random settings; the result depends on the arguments alone, on every machine.

    Raises:
        Invalid: the space has fewer distinct settings.
    """
    # Values may be large, so settings are compared by the places of their values in the lists.
    places = {name: _places(values) for name, values in parameters.items() if not isinstance(values, Range)}
    size = math.prod(len(set(places[name])) if name in places else trials for name in parameters)
    distinct: dict[tuple[Any, ...], None] = {}
    for settings in _drawn(parameters, places, trials * _TRIES if size >= trials else 0, seed):
        distinct.setdefault(settings)
        if len(distinct) == trials:
            return [_settings(parameters, settings) for settings in distinct]
    size = len(distinct) or size
    raise Invalid([FieldError("/trials", f"expected at most {size}; the space has no more distinct settings")])


def _places(values: Values) -> list[int]:
    """Return for each value the place of the first equal one."""
    first: dict[str, int] = {}
    return [first.setdefault(repr(value), place) for place, value in enumerate(values)]


def _drawn(
    parameters: Parameters, places: Mapping[str, list[int]], count: int, seed: int
) -> Iterator[tuple[float | int, ...]]:
    """Yield for each parameter the place of the drawn value in its list, or the value drawn from its range."""
    for number in range(count):
        # A text seed is hashed by SHA-512, so each parameter has its own draws, independent of other parameters.
        shares = {name: random.Random(f"{seed}/{name}/{number}").random() for name in parameters}
        yield tuple(
            values.at(shares[name]) if isinstance(values, Range) else places[name][int(shares[name] * len(values))]
            for name, values in parameters.items()
        )


def _settings(parameters: Parameters, drawn: tuple[float | int, ...]) -> Settings:
    pairs = zip(parameters.items(), drawn, strict=True)
    return {name: each if isinstance(values, Range) else values[int(each)] for (name, values), each in pairs}


def pointer(name: str) -> str:
    """Return the JSON pointer to a parameter of the request."""
    return f"/parameters/{name.replace('~', '~0').replace('/', '~1')}"
