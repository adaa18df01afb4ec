"""What predicted classes are worth."""

from __future__ import annotations

import torch
from torch import Tensor


def top1(predicted: Tensor, labels: Tensor) -> float:
    """Share of images whose class was met, in 0..1.

    Args:
        predicted: (N,) int64 classes.
        labels: (N,) int64 classes.
    """
    return float((predicted == labels).double().mean())


def mean_per_class(predicted: Tensor, labels: Tensor) -> float:
    """Mean over the classes that `labels` holds of the share met of each: every class counts alike, in 0..1."""
    hits, totals = labels[predicted == labels], labels
    counts = totals.bincount()
    met = hits.bincount(minlength=len(counts))
    present = counts > 0
    return float((met[present].to(torch.float64) / counts[present]).mean())
