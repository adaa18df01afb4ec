"""Parallel coordinates as numbers to draw: an axis for each parameter and one for the metric, a line for each trial.

Heights are pixels of the drawing; places from left to right are percent of its width, so that it may be any width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from api.web.format import number, percent
from jobs.models import Sweep
from jobs.sweeps import Standing, values_at

TOP, BOTTOM, HEIGHT = 56.0, 304.0, 320
_LEFT, _RIGHT = 2.0, 98.0
_SHADES = 5
_MOST_LABELS = 12


@dataclass(frozen=True)
class Tick:
    y: float
    label: str


@dataclass(frozen=True)
class Axis:
    """`group` is what stands above the title: the section of the spec; `side` and `lift` say where labels are put."""

    x: float
    group: str
    title: str
    note: str
    ticks: list[Tick]
    side: str
    lift: int


@dataclass(frozen=True)
class Line:
    """`heights` are None where it has no value; `shade` counts from 1, the worst, to 5; 0 without a value."""

    trial: int
    path: str
    heights: list[float | None]
    shade: int
    told: str


@dataclass(frozen=True)
class Drawing:
    axes: list[Axis]
    lines: list[Line]

    @property
    def size(self) -> str:
        """A class that keeps many axes apart on a narrow screen."""
        return "few" if len(self.axes) < 5 else "some" if len(self.axes) < 9 else "many"


def drawing(sweep: Sweep, table: Sequence[Standing], rung: int) -> Drawing:
    """The trials that have entered a rung, by their values there; the worst first, so that the best lie on top."""
    values = values_at(table, rung)
    scales = [_scale(name, sweep.parameters[name]) for name in sweep.parameters]
    scales.append(_metric_scale(sweep, [value for value in values.values() if value is not None]))
    places = [_LEFT + (_RIGHT - _LEFT) * place / (len(scales) - 1) for place in range(len(scales))]
    axes = [scale.axis(x, is_last=x == places[-1]) for scale, x in zip(scales, places, strict=True)]
    shades = _shades(values, maximize=sweep.direction == "maximize")
    lines = []
    for trial in sorted(values, key=lambda trial: (shades[trial], -trial)):
        settings = table[trial].settings
        heights = [scale.height(settings.get(name)) for scale, name in zip(scales, sweep.parameters, strict=False)]
        heights.append(scales[-1].height(values[trial]))
        told = "; ".join(f"{name} {text(value)}" for name, value in settings.items())
        lines.append(Line(trial, _path(places, heights), heights, shades[trial], f"{told}: {percent(values[trial])}"))
    return Drawing(axes, lines)


def text(value: Any) -> str:
    """A setting's value in a cell."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return number(value) if 1e-3 <= abs(value) < 1e6 else f"{value:g}"


def _path(places: Sequence[float], heights: Sequence[float | None]) -> str:
    points = [f"{x:.2f} {y:.1f}" for x, y in zip(places, heights, strict=True) if y is not None]
    return "M" + "L".join(points)


def _shades(values: dict[int, float | None], *, maximize: bool) -> dict[int, int]:
    """By rank, so that one far away value does not make all others look alike."""
    measured = sorted((value if maximize else -value, -trial) for trial, value in values.items() if value is not None)
    ranks = {-trial: place for place, (_, trial) in enumerate(measured)}
    last = max(1, len(ranks) - 1)
    return {trial: 1 + round((_SHADES - 1) * ranks[trial] / last) if trial in ranks else 0 for trial in values}


# --- scales ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    group: str
    title: str
    note: str
    ticks: Sequence[tuple[Any, str]]
    lift = 4  # labels stand beside their place

    def share(self, value: Any) -> float | None:
        raise NotImplementedError

    def height(self, value: Any) -> float | None:
        share = None if value is None else self.share(value)
        return None if share is None else round(BOTTOM - share * (BOTTOM - TOP), 1)

    def axis(self, x: float, *, is_last: bool) -> Axis:
        ticks = [Tick(y, label) for value, label in self.ticks if (y := self.height(value)) is not None]
        side = "end" if is_last else "start"
        return Axis(round(x, 2), self.group, self.title, self.note, ticks, side, self.lift)


@dataclass(frozen=True)
class _Numbers(_Scale):
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False

    def share(self, value: Any) -> float | None:
        low, high, at = self.low, self.high, float(value)
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return min(1.0, max(0.0, (at - low) / (high - low)))


@dataclass(frozen=True)
class _Choices(_Scale):
    known: Sequence[str] = ()
    lift = -5  # above it, where no line begins

    def height(self, value: Any) -> float | None:
        key = text(value)  # null is a choice, too
        if key not in self.known:
            return None
        share = 0.5 if len(self.known) == 1 else self.known.index(key) / (len(self.known) - 1)
        return round(BOTTOM - share * (BOTTOM - TOP), 1)


def _scale(name: str, searched: Any) -> _Scale:
    group, _, title = name.rpartition(".")
    if isinstance(searched, dict):
        low, high, is_log = searched["min"], searched["max"], searched["log"]
        steps = _log_steps(low, high) if is_log else _steps(low, high)
        ticks = [(step, text(step)) for step in steps]
        return _Numbers(group, title, "log" if is_log else "", ticks, low, high, is_log)
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in searched)
    known = list(dict.fromkeys(text(value) for value in (sorted(searched) if plain else searched)))
    every = math.ceil(len(known) / _MOST_LABELS)
    shown = [(value, text(value)) for value in searched if known.index(text(value)) % every == 0]
    return _Choices(group, title, "", shown, known)


def _metric_scale(sweep: Sweep, values: Sequence[float]) -> _Scale:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.02 if high == low else 0.0
    low, high = low - room, high + room
    ticks = [(step, percent(step)) for step in _steps(low, high)] if values else []
    return _Numbers(sweep.metric["protocol"], sweep.metric["name"], "", ticks, low, high)


def _steps(low: float, high: float) -> list[float]:
    """Round numbers within, about five."""
    size = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(size * times for times in (1, 2, 5, 10) if (high - low) / (size * times) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [round(step * place, 12) for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_steps(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten, or the powers alone where that is enough."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for times in ((1, 2, 5), (1,)):
        found = [float(f"{factor}e{power}") for power in powers for factor in times]
        within = [step for step in found if low <= step * (1 + 1e-9) and step <= high * (1 + 1e-9)]
        if len(within) <= 8:
            break
    return within
