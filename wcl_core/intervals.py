"""Confidence intervals of accuracies.  This module does not import torch."""

from __future__ import annotations

import math

_Z = 1.959963984540054  # of a normal distribution, for 95 %


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share that was measured on some images (Wilson, 1927).

    >>> [round(each, 3) for each in wilson(0.617, 107)]
    [0.522, 0.704]

    Args:
        share: from 0 to 1.
        count: of the images, at least 1.
    """
    scale = 1 + _Z**2 / count
    centre = (share + _Z**2 / (2 * count)) / scale
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)
