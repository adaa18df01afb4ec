"""Geometry of parallel coordinates: one axis per parameter, one for the metric, and one line per trial.

Heights are in pixels of the drawing; horizontal positions are percentages, so that it fits any width.
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
    """An axis; `group` is the section of the spec above the title, `side` and `lift` place the labels."""

    x: float
    group: str
    title: str
    note: str
    ticks: list[Tick]
    side: str
    lift: int


@dataclass(frozen=True)
class Line:
    """A trial; `heights` are None where it has no value, `shade` is 1 (worst) to 5, or 0 without a value."""

    trial: int
    path: str
    heights: list[float | None]
    shade: int
    text: str


@dataclass(frozen=True)
class Drawing:
    axes: list[Axis]
    lines: list[Line]

    @property
    def size(self) -> str:
        """The CSS class that sets the minimum width for the number of axes."""
        return "few" if len(self.axes) < 5 else "some" if len(self.axes) < 9 else "many"


def drawing(sweep: Sweep, table: Sequence[Standing], rung: int) -> Drawing:
    """Return the trials of a rung, the worst first, so that the best are drawn on top."""
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
        words = "; ".join(f"{name} {text(value)}" for name, value in settings.items())
        lines.append(Line(trial, _path(places, heights), heights, shades[trial], f"{words}: {percent(values[trial])}"))
    return Drawing(axes, lines)


def text(value: Any) -> str:
    """Format the value of a setting."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return number(value) if 1e-3 <= abs(value) < 1e6 else f"{value:g}"


def _path(places: Sequence[float], heights: Sequence[float | None]) -> str:
    points = [f"{x:.2f} {y:.1f}" for x, y in zip(places, heights, strict=True) if y is not None]
    return "M" + "L".join(points)


def _shades(values: dict[int, float | None], *, maximize: bool) -> dict[int, int]:
    """Return shades by rank, so that one outlier does not make all other values look alike."""
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
    lift = 4  # labels beside their position

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
    choices: Sequence[str] = ()
    lift = -5  # labels above their position, since lines start there

    def height(self, value: Any) -> float | None:
        key = text(value)  # null is a choice, too
        if key not in self.choices:
            return None
        share = 0.5 if len(self.choices) == 1 else self.choices.index(key) / (len(self.choices) - 1)
        return round(BOTTOM - share * (BOTTOM - TOP), 1)


def _scale(name: str, searched: Any) -> _Scale:
    group, _, title = name.rpartition(".")
    if isinstance(searched, dict):
        low, high, is_log = searched["min"], searched["max"], searched["log"]
        steps = _log_steps(low, high) if is_log else _steps(low, high)
        ticks = [(step, text(step)) for step in steps]
        return _Numbers(group, title, "log" if is_log else "", ticks, low, high, is_log)
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in searched)
    choices = list(dict.fromkeys(text(value) for value in (sorted(searched) if plain else searched)))
    every = math.ceil(len(choices) / _MOST_LABELS)
    shown = [(value, text(value)) for value in searched if choices.index(text(value)) % every == 0]
    return _Choices(group, title, "", shown, choices)


def _metric_scale(sweep: Sweep, values: Sequence[float]) -> _Scale:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.02 if high == low else 0.0
    low, high = low - room, high + room
    ticks = [(step, percent(step)) for step in _steps(low, high)] if values else []
    return _Numbers(sweep.metric["protocol"], sweep.metric["name"], "", ticks, low, high)


def _steps(low: float, high: float) -> list[float]:
    """Return about five round numbers within a range."""
    size = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(size * times for times in (1, 2, 5, 10) if (high - low) / (size * times) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [round(step * place, 12) for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_steps(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times each power of ten within a range, or the powers alone if those are enough."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for times in ((1, 2, 5), (1,)):
        steps = [float(f"{factor}e{power}") for power in powers for factor in times]
        within = [step for step in steps if low <= step * (1 + 1e-9) and step <= high * (1 + 1e-9)]
        if len(within) <= 8:
            break
    return within
