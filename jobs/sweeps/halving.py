"""Successive halving (Jamieson and Talwalkar, AISTATS 2016): rungs of growing budget; the best trials are promoted.

Every rung is a separate training run from scratch, with a schedule as long as the rung.  The reason is the cosine
schedule.  After a third of a long run the learning rate is still high, and at the end of a short run it is zero, so the
two states are not comparable.  A rung that continued a short run would raise its learning rate again.  Therefore all
ranked states are ends of complete schedules; a promoted trial costs eta / (eta - 1) times its last run.

Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from jobs.errors import FieldError, Invalid


@dataclass(frozen=True)
class Rung:
    """A number of trials, and the epochs that each of them trains; None means the epochs of its spec."""

    trials: int
    epochs: int | None = None


def rungs(trials: int, epochs: int, eta: int, min_epochs: int | None) -> list[Rung]:
    """Return rungs that end at `epochs`, each eta times as long as the previous one, none shorter than `min_epochs`.

    Their number is the largest one that leaves a trial for the last rung.

    Raises:
        Invalid: there would be only one rung.
    """
    shortest = min_epochs or 1
    lengths = [epochs]
    while len(lengths) < _most(trials, eta) and (below := round(epochs / eta ** len(lengths))) >= shortest:
        if below >= lengths[0]:
            break
        lengths.insert(0, below)
    if len(lengths) < 2:
        detail = f"{trials} trials and {epochs} epochs with eta = {eta} allow only one rung; expected at least two"
        raise Invalid([FieldError("/min_epochs" if _most(trials, eta) > 1 else "/trials", detail)])
    return explicit(trials, lengths, eta)


def explicit(trials: int, lengths: Sequence[int], eta: int) -> list[Rung]:
    """Return rungs of the given lengths.

    Raises:
        Invalid: the lengths do not increase, or there are too few trials for them.
    """
    if any(longer <= shorter for shorter, longer in pairwise(lengths)):
        raise Invalid([FieldError("/rungs", "expected increasing numbers of epochs")])
    if len(lengths) > (most := _most(trials, eta)):
        detail = f"there are {len(lengths)} rungs, but {trials} trials allow at most {most} with eta = {eta}"
        raise Invalid([FieldError("/rungs", detail)])
    return [Rung(trials // eta**place, epochs) for place, epochs in enumerate(lengths)]


def _most(trials: int, eta: int) -> int:
    """Return the largest number of rungs that leaves a trial for the last one."""
    count = 1
    while trials // eta**count >= 1:
        count += 1
    return count


def ranked(values: Mapping[int, float | None], *, maximize: bool) -> list[tuple[int, float]]:
    """Return (trial, value) best first, equal values by number; trials without a value are left out."""
    measured = [(number, value) for number, value in values.items() if value is not None and math.isfinite(value)]
    return sorted(measured, key=lambda pair: (-pair[1] if maximize else pair[1], pair[0]))
