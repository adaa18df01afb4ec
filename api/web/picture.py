"""Curves as plain SVG, for browsers without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from api.web.format import metric, number
from jobs.curves import CurvePoint

WIDTH, HEIGHT, MARGIN = 600, 180, 8
# Visible on white and on black, since a picture has no theme; in the order of the configurations.
COLOURS = ("#2387a5", "#c76a2d", "#8a5cc2", "#3f8f55", "#c2557f", "#8c7d1e", "#5571d6", "#7d858b")


def drawing(points: Sequence[CurvePoint], name: str) -> dict[str, Any]:
    """Return the context of the template for one curve."""
    return drawings([(points, 1)], name)


def drawings(curves: Sequence[tuple[Sequence[CurvePoint], int]], name: str) -> dict[str, Any]:
    """Return the context of the template: one line per unbroken part of an attempt, and the labels.

    Args:
        curves: points with the number of their colour, from 1 on.
    """
    shown = [point for points, _ in curves for point in points if point.value is not None]
    steps = [point.step for point in shown] or [0]
    values = [point.value for point in shown if point.value is not None] or [0.0]
    low, high, first, last = min(values), max(values), min(steps), max(steps)

    def place(point: CurvePoint) -> str:
        x = MARGIN + (point.step - first) / ((last - first) or 1) * (WIDTH - 2 * MARGIN)
        y = HEIGHT - MARGIN - ((point.value or 0.0) - low) / ((high - low) or 1) * (HEIGHT - 2 * MARGIN)
        return f"{x:.1f},{y:.1f}"

    def lines(points: Sequence[CurvePoint]) -> list[str]:
        runs = [list(group) for _, group in groupby(points, key=lambda point: (point.attempt, point.value is None))]
        return [" ".join(map(place, run)) for run in runs if run[0].value is not None]

    return {
        "width": WIDTH,
        "height": HEIGHT,
        "name": name,
        "lines": [(line, COLOURS[colour - 1]) for points, colour in curves for line in lines(points)],
        "low": metric(low, name),
        "high": metric(high, name),
        "latest": metric(values[-1], name),
        "steps": f"steps {number(first)} to {number(last)}",
    }
