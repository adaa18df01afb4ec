"""Comparison of two methods over the same seeds: the mean of their differences, and tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student

from .trials import MEASURES, PRECISIONS, PRIMARY, Measured, Settings


def paired(differences: list[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % t-interval; needs at least two differences."""
    half = student.ppf(0.975, len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    return mean(differences), float(half)


def comparison_table(simclr: list[Measured], wcl: list[Measured]) -> str:
    """Return a table with a row for each measure, in percent; entry i of both lists has the same seed."""
    lines = ["| measure | | SimCLR | WCL | WCL - SimCLR, points, 95 % interval |", "|---|---|---|---|---|"]
    for name in MEASURES:
        a, b = ([100 * one[name] for one in many] for many in (simclr, wcl))
        difference, half = paired([y - x for x, y in zip(a, b, strict=True)])
        rank = "primary" if name in PRIMARY else "secondary"
        lines.append(f"| {name} | {rank} | {mean(a):.2f} | {mean(b):.2f} | {difference:+.2f} ± {half:.2f} |")
    return "\n".join(lines)


def precision_line(wcl: list[Measured]) -> str:
    first, last, chance = (100 * mean(one[name] for one in wcl) for name in PRECISIONS)
    return f"Pair precision of WCL's weak labels: {first:.0f} % first, {last:.0f} % last, chance {chance:.0f} %."


def search_table(tried: list[dict[str, Any]]) -> str:
    """Return a table of all settings that were tried, by method."""
    lines = ["| method | stage | settings | score | pair precision |", "|---|---|---|---|---|"]
    for entry in sorted(tried, key=lambda entry: str(entry["method"])):
        precision = f"{100 * entry[PRECISIONS[1]]:.0f}" if PRECISIONS[1] in entry else "-"
        text = described(entry["method"], entry["settings"])
        lines.append(f"| {entry['method']} | {entry['stage']} | {text} | {100 * entry['score']:.2f} | {precision} |")
    return "\n".join(lines)


def budget_line(tried: list[dict[str, Any]], num_seeds: int) -> str:
    methods: Iterable[str] = dict.fromkeys(entry["method"] for entry in tried)
    counts = {method: sum(entry["method"] == method for entry in tried) for method in methods}
    text = ", ".join(f"{method} {count} settings" for method, count in counts.items())
    return f"Search: {text}, each over {num_seeds} seeds with another held-out tenth of train."


def described(method: str, settings: Settings) -> str:
    """Return the settings that this method uses, as text."""
    own = {path: value for path, value in settings.items() if method == "wcl" or not path.startswith("loss.weak_")}
    return ", ".join(f"{path.split('.')[-1]} {value}" for path, value in own.items())
