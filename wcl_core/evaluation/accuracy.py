"""Accuracy of predicted classes."""

from __future__ import annotations

import torch
from torch import Tensor


def top1(predicted: Tensor, labels: Tensor) -> float:
    """Return the share of images whose class was predicted, in 0..1.

    Args:
        predicted: (N,) int64 classes.
        labels: (N,) int64 classes.
    """
    return float((predicted == labels).double().mean())


def mean_per_class(predicted: Tensor, labels: Tensor) -> float:
    """Return the mean, over the classes in `labels`, of the accuracy on each class, in 0..1."""
    hits, totals = labels[predicted == labels], labels
    counts = totals.bincount()
    met = hits.bincount(minlength=len(counts))
    present = counts > 0
    return float((met[present].to(torch.float64) / counts[present]).mean())
