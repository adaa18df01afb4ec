"""Interleaved rounds: every round runs ours and its peer once, so that other load of the machine affects both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Row:
    """One line of the table: the times of both (or other values, see `unit`), and their ratio against its goal."""

    item: str
    peer: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    low: float
    high: float
    goal: str
    is_met: bool


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def interleaved(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int, warm_up: bool = True
) -> tuple[list[float], list[float]]:
    """Return `rounds` measurements of each, taken in turn; the order within a round alternates."""
    if warm_up:
        ours(), theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            times[which].append((ours, theirs)[which]())
    return times


def faster(item: str, peer: str, ours: list[float], theirs: list[float], at_least: float, unit: str = "ms") -> Row:
    """Return the row of a speed-up: the median over rounds of their time divided by ours."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    scale = {"us": 1e6, "ms": 1e3, "s": 1.0}[unit]
    value = median(ratios)
    return Row(
        item, peer, median(ours) * scale, median(theirs) * scale, unit,
        value, min(ratios), max(ratios), f">= {at_least:g}", value >= at_least,
    )  # fmt: skip


def share(item: str, peer: str, ours: list[float], theirs: list[float], at_most: float, unit: str = "ms") -> Row:
    """Return the row of a share: the median over rounds of our time divided by theirs."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    scale = {"us": 1e6, "ms": 1e3, "s": 1.0}[unit]
    value = median(ratios)
    return Row(
        item, peer, median(ours) * scale, median(theirs) * scale, unit,
        value, min(ratios), max(ratios), f"<= {at_most:g}", value <= at_most,
    )  # fmt: skip


def table(rows: list[Row]) -> str:
    lines = ["| item | peer | ours | peer's | ratio (range) | goal | met |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row.item} | {row.peer} | {row.ours:.4g} {row.unit} | {row.theirs:.4g} {row.unit} "
            f"| {row.ratio:.3g} ({row.low:.3g} to {row.high:.3g}) | {row.goal} | {'yes' if row.is_met else 'NO'} |"
        )
    return "\n".join(lines)
