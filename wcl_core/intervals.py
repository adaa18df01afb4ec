"""Confidence intervals of accuracies.  This module does not import torch."""

from __future__ import annotations

import math
from typing import Final

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
