"""The geometry of parallel coordinates: linear, logarithmic and discrete axes, and the order of lines."""

from __future__ import annotations

from typing import Any

import pytest

from api.web import parallel
from api.web.parallel import BOTTOM, TOP
from jobs.models import Sweep
from jobs.sweeps import Place, Run, Standing, TrialResult

MIDDLE = (TOP + BOTTOM) / 2


def sweep(parameters: dict[str, Any], direction: str = "maximize") -> Sweep:
    return Sweep(parameters=parameters, direction=direction, metric={"protocol": "knn", "name": "top1"})


def trials(settings: list[dict[str, Any]], values: list[float | None]) -> list[Standing]:
    standings = []
    for number, (each, value) in enumerate(zip(settings, values, strict=True)):
        run = Run(Place(number, 0, 0), "job", "succeeded", None, None, value)
        standings.append(Standing(number, each, "finished", [TrialResult([run])]))
    return standings


def heights(drawn: parallel.Drawing) -> dict[int, list[float | None]]:
    return {line.trial: line.heights for line in drawn.lines}


def test_ranges_are_drawn_by_value_or_by_logarithm() -> None:
    bounds = {"min": 0.01, "max": 1, "integer": False}
    settings = [{"a": value, "b": value} for value in (0.01, 0.1, 1)]
    parameters = {"a": bounds | {"log": True}, "b": bounds | {"log": False}}

    drawn = parallel.drawing(sweep(parameters), trials(settings, [0.1, 0.2, 0.3]), 0)

    at = heights(drawn)
    assert [at[trial][0] for trial in range(3)] == [BOTTOM, MIDDLE, TOP]
    assert [at[trial][1] for trial in (0, 2)] == [BOTTOM, TOP]
    assert at[1][1] == pytest.approx(BOTTOM - (BOTTOM - TOP) * 0.09 / 0.99, abs=0.1)
    assert [at[trial][2] for trial in range(3)] == [BOTTOM, MIDDLE, TOP]
    assert [tick.label for tick in drawn.axes[0].ticks] == ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]
    assert [axis.note for axis in drawn.axes] == ["log", "", ""]


def test_choices_are_evenly_spaced_and_numbers_sorted() -> None:
    settings = [{"x.n": n, "m": m} for n, m in ((64, "wcl"), (256, None), (128, "wcl"))]

    drawn = parallel.drawing(sweep({"x.n": [64, 256, 128], "m": ["wcl", None]}), trials(settings, [0.1] * 3), 0)

    at = heights(drawn)
    assert [at[trial][0] for trial in range(3)] == [BOTTOM, TOP, MIDDLE]
    assert [at[trial][1] for trial in range(3)] == [BOTTOM, TOP, BOTTOM]
    assert [(axis.group, axis.title) for axis in drawn.axes] == [("x", "n"), ("", "m"), ("knn", "top1")]
    assert [axis.x for axis in drawn.axes] == [2, 50, 98]


@pytest.mark.parametrize(("direction", "best"), [("maximize", 1), ("minimize", 3)])
def test_the_best_is_strongest_and_on_top(direction: str, best: int) -> None:
    settings = [{"a": number} for number in range(4)]

    drawn = parallel.drawing(sweep({"a": [0, 1, 2, 3]}, direction), trials(settings, [0.5, 0.9, None, 0.1]), 0)

    assert (drawn.lines[-1].trial, drawn.lines[-1].shade) == (best, 5)
    assert (drawn.lines[0].trial, drawn.lines[0].shade) == (2, 0)
    assert drawn.lines[0].heights[-1] is None
    assert "None" not in drawn.lines[0].path


def test_a_single_value_is_in_the_middle() -> None:
    drawn = parallel.drawing(sweep({"a": [1]}), trials([{"a": 1}], [0.5]), 0)

    assert heights(drawn) == {0: [MIDDLE, MIDDLE]}
    assert parallel.drawing(sweep({"a": [1]}), [], 0).lines == []
