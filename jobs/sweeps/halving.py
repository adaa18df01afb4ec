"""Successive halving (Jamieson and Talwalkar, AISTATS 2016): rungs of growing budget, of each the best go on.

Every rung is a whole training run of its own, from scratch, under a schedule as long as the rung.  The schedule is a
cosine: after a third of a long run the rate is still high, after a short run it is zero, so the two states are not
comparable, and going on from the end of a short run would warm up again what has cooled down.  Ranking states that
have all cooled down is the honest form; a survivor costs eta / (eta - 1) times its last run for it.

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
    """How long each of how many trials trains; `epochs` None: as long as its spec says."""

    trials: int
    epochs: int | None = None


def rungs(trials: int, epochs: int, eta: int, min_epochs: int | None) -> list[Rung]:
    """Rungs that end at `epochs`, each eta times as long as the one before, none shorter than `min_epochs`.

    There are as many as the trials carry: the last one has at least one trial.

    Raises:
        Invalid: there would be one rung only.
    """
    shortest = min_epochs or 1
    lengths = [epochs]
    while len(lengths) < _most(trials, eta) and (below := round(epochs / eta ** len(lengths))) >= shortest:
        if below >= lengths[0]:
            break
        lengths.insert(0, below)
    if len(lengths) < 2:
        detail = f"{trials} trials and {epochs} epochs with eta = {eta} make one rung only; expected at least two"
        raise Invalid([FieldError("/min_epochs" if _most(trials, eta) > 1 else "/trials", detail)])
    return explicit(trials, lengths, eta)


def explicit(trials: int, lengths: Sequence[int], eta: int) -> list[Rung]:
    """Rungs of the lengths given.

    Raises:
        Invalid: they do not grow, or are more than the trials carry.
    """
    if any(longer <= shorter for shorter, longer in pairwise(lengths)):
        raise Invalid([FieldError("/rungs", "expected growing numbers of epochs")])
    if len(lengths) > (most := _most(trials, eta)):
        detail = f"{trials} trials carry at most {most} rungs with eta = {eta}, these are {len(lengths)}"
        raise Invalid([FieldError("/rungs", detail)])
    return [Rung(trials // eta**place, epochs) for place, epochs in enumerate(lengths)]


def _most(trials: int, eta: int) -> int:
    """How many rungs there can be until none is left."""
    count = 1
    while trials // eta**count >= 1:
        count += 1
    return count


def ranked(values: Mapping[int, float | None], *, maximize: bool) -> list[tuple[int, float]]:
    """Trials with their values, best first, equal ones by number; without those that have none."""
    measured = [(number, value) for number, value in values.items() if value is not None and math.isfinite(value)]
    return sorted(measured, key=lambda pair: (-pair[1] if maximize else pair[1], pair[0]))
