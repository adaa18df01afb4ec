"""Confidence intervals of accuracies.  This module does not import torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Final, NamedTuple

from wcl_core.per_image import Pairs

CONFIDENCE: Final = 0.95
Z: Final = 1.959963984540054  # of a normal distribution, for 95 %


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share that was measured on some images (Wilson, 1927).

    >>> [round(each, 3) for each in wilson(0.617, 107)]
    [0.522, 0.704]

    Args:
        share: from 0 to 1.
        count: of the images, at least 1.
    """
    scale = 1 + Z**2 / count
    centre = (share + Z**2 / (2 * count)) / scale
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def newcombe(share: float, other: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of `share - other`, each of `count` images (Newcombe, 1998, method 10).

    It takes the two for independent.  Two measurements of the same images differ less, so it is rather too wide.

    Args:
        share, other: from 0 to 1.
        count: of the images, at least 1.
    """
    (low, high), (other_low, other_high) = wilson(share, count), wilson(other, count)
    below = math.hypot(share - low, other_high - other)
    above = math.hypot(high - share, other - other_low)
    return share - other - below, share - other + above


def paired(pairs: Pairs, variance: float = 0.0) -> tuple[float, float]:
    """Return the 95 % interval of the mean difference of two results on the same images (Agresti and Min, 2005).

    It adds a pair of each sign, which makes the interval hold also with few images.  For shares of several
    classifications of each image, the same formula takes the squares of the differences.

    >>> [round(each, 3) for each in paired(Pairs(100, 20, 30))]
    [0.096, 0.296]

    Args:
        pairs: the differences of the images.
        variance: of the mean, from other sources than the choice of the images.
    """
    count = pairs.images + 2
    mean = pairs.total / count
    half = Z * math.sqrt(((pairs.squares + 1) / count - mean**2) / count + variance)
    return max(-1.0, mean - half), min(1.0, mean + half)


class Difference(NamedTuple):
    """A difference of two accuracies, its 95 % interval, and the method of the interval in words."""

    value: float
    low: float
    high: float
    method: str

    @property
    def is_shown(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    @property
    def margin(self) -> float:
        """Half of the interval."""
        return (self.high - self.low) / 2

    @property
    def is_open(self) -> bool:
        """Whether the interval is as wide as all differences that are possible, so that it says nothing."""
        return self.margin >= 1

    @property
    def p_value(self) -> float:
        """The two-sided p-value that belongs to the interval, taken as one of a normal distribution (Altman, 2011)."""
        end = self.value - self.low if self.value > 0 else self.high - self.value  # of the interval, towards 0
        if not self.value:
            return 1.0
        return math.erfc(Z * abs(self.value) / end / math.sqrt(2)) if end > 0 else 0.0

    @property
    def reversed(self) -> Difference:
        """The difference of the second accuracy to the first one."""
        return Difference(0.0 - self.value, 0.0 - self.high, 0.0 - self.low, self.method)  # no minus zero


def holm(p_values: Sequence[float]) -> list[bool]:
    """Return which of several comparisons are shown, with a chance of 5 % for one error among all (Holm, 1979).

    >>> holm([0.04, 0.001, 0.02])
    [True, True, True]
    >>> holm([0.04, 0.001, 0.03])
    [False, True, False]
    """
    shown = [False] * len(p_values)
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        if p_values[place] > (1 - CONFIDENCE) / (len(p_values) - rank):
            break
        shown[place] = True
    return shown


def difference(ours: Mapping[int, float], others: Mapping[int, float], count: int | None) -> Difference | None:
    """Return how much better `ours` is than `others`, each measured for some seeds.

    Seeds that both have are pairs: such trainings share their first weights, batches and views, so that their
    difference varies less.  With two seeds or more the interval is over the seeds, on the same test images; with one
    seed it is from the number of test images alone.

    Args:
        ours, others: accuracies from 0 to 1, by seed.
        count: of the test images; None if it is unknown.

    Returns:
        None if one side has no value, or if neither seeds nor images give an interval.
    """
    common = sorted(ours.keys() & others.keys())
    if len(common) > 1:
        mean, _, interval = summary([ours[seed] - others[seed] for seed in common])
        assert interval is not None
        return Difference(mean, *interval, f"t-interval over {len(common)} paired seeds")
    if len(ours) > 1 and len(others) > 1:
        return _welch(list(ours.values()), list(others.values()))
    if not ours or not others or not count:
        return None
    seeds = (common, common) if common else (list(ours), list(others))
    means = [math.fsum(side[seed] for seed in of) / len(of) for side, of in zip((ours, others), seeds, strict=True)]
    method = f"Newcombe's interval of one seed on {count:,} test images"
    return Difference(means[0] - means[1], *newcombe(means[0], means[1], count), method)


def one_pair(ours: Collection[int], others: Collection[int]) -> tuple[int, int] | None:
    """Return the two seeds whose trainings stand for both sides; None if the seeds themselves give an interval."""
    common = set(ours) & set(others)
    if len(common) == 1 and min(len(ours), len(others)) == 1:
        return min(common), min(common)
    return (min(ours), min(others)) if len(ours) == len(others) == 1 else None


def _welch(ours: Sequence[float], others: Sequence[float]) -> Difference:
    """Return the difference of two means with Welch's interval (1947); its degrees of freedom are rounded down."""
    sides = [(summary(values), len(values)) for values in (ours, others)]
    (mean, other), variances = [side[0][0] for side in sides], [(side[0][1] or 0.0) ** 2 / side[1] for side in sides]
    method = f"Welch's t-interval over {len(ours)} and {len(others)} seeds"
    if not sum(variances):
        return Difference(mean - other, mean - other, mean - other, method)
    spread = sum(part**2 / (side[1] - 1) for part, side in zip(variances, sides, strict=True))
    degrees = max(1, math.floor(sum(variances) ** 2 / spread))
    half = t_quantile(0.5 + CONFIDENCE / 2, degrees) * math.sqrt(sum(variances))
    return Difference(mean - other, mean - other - half, mean - other + half, method)


def summary(values: Sequence[float]) -> tuple[float, float | None, tuple[float, float] | None]:
    """Return the mean, the sample's standard deviation, and the 95 % t-interval of the mean."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None, None
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(0.5 + CONFIDENCE / 2, n - 1) * deviation / math.sqrt(n)
    return mean, deviation, (mean - half, mean + half)


def summary_of_shares(values: Sequence[float]) -> tuple[float, float | None, tuple[float, float] | None]:
    """Return the same for shares; an interval as wide as all shares says nothing, and is None.

    >>> summary_of_shares([0.2, 0.7])[2]  # two seeds that differ much
    >>> [round(end, 3) for end in summary_of_shares([0.97, 0.99, 0.98])[2]]
    [0.955, 1.005]
    """
    mean, deviation, interval = summary(values)
    return mean, deviation, None if interval is None or interval[1] - interval[0] >= 1 else interval


@cache  # 200 steps; a leaderboard asks for one of few seeds hundreds of times
def t_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t, by bisection of its distribution function.

    Args:
        probability: in [0.5, 1).
        degrees: of freedom, >= 1.
    """
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_distribution(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _t_distribution(t: float, degrees: int) -> float:
    """Return P(T <= t) for t >= 0, by the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2 == 1
    term, total = (cosine, 0.0) if is_odd else (1.0, 0.0)
    for k in range(1 + is_odd, degrees, 2):
        total += term
        term *= k / (k + 1) * cosine**2
    inside = 2 / math.pi * (angle + sine * total) if is_odd else sine * total
    return 0.5 + inside / 2
