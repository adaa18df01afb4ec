"""Protocol `retrieval`: train images ranked by cosine for each test image; an image of the same class is a hit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wcl_core.evaluation.features import FeatureSet
from wcl_core.methods.heads import normalise
from wcl_core.stop import check

VERSION = 1
SHOWN_NEIGHBOURS = 5
_ROWS = 256


@dataclass(frozen=True)
class Retrieval:
    """The results over all test images.

    Attributes:
        recall_at_1, recall_at_5: share of test images with a hit among the first 1 or 5.
        hits_at_1, hits_at_5: (M,) bool, these images.
        mean_average_precision: mean over test images of the mean, over their hits, of the precision at the hit's rank.
        by_class: mean average precision of each class's test images.
        examples: some test images with their nearest train images.
    """

    hits_at_1: Tensor
    hits_at_5: Tensor
    mean_average_precision: float
    by_class: tuple[float | None, ...]
    examples: list[dict[str, Any]]

    @property
    def recall_at_1(self) -> float:
        return float(self.hits_at_1.double().mean())

    @property
    def recall_at_5(self) -> float:
        return float(self.hits_at_5.double().mean())


def retrieval(features: FeatureSet, num_examples: int) -> Retrieval:
    """Rank the train images for each test image; equal cosines keep the order of the train split.

    Args:
        features: both splits; L2-normalised here, not centred.
        num_examples: number of test images whose neighbours are listed, evenly spaced over the split.
    """
    train, test = normalise(features.train), normalise(features.test)
    firsts, precisions, tops = [], [], []
    for queries, labels in zip(test.split(_ROWS), features.test_labels.split(_ROWS), strict=True):
        check()
        order = (queries @ train.T).argsort(dim=1, descending=True, stable=True)
        hits = features.train_labels[order] == labels[:, None]
        firsts.append(hits[:, :SHOWN_NEIGHBOURS])
        precisions.append(_average_precision(hits))
        tops.append(order[:, :SHOWN_NEIGHBOURS])
    first, precision, top = torch.cat(firsts), torch.cat(precisions), torch.cat(tops)
    return Retrieval(
        first[:, 0],
        first.any(dim=1),
        float(precision.mean()),
        _by_class(precision, features.test_labels),
        [_example(features, train, test, top, int(row)) for row in _spread(len(test), num_examples)],
    )


def _average_precision(hits: Tensor) -> Tensor:
    """Return the average precision of hits in rank order, (Q, N) bool: (Q,) float64; 0 for a query without a hit."""
    ranks = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)
    precision = hits.cumsum(dim=1) / ranks
    return (precision * hits).sum(dim=1) / hits.sum(dim=1).clamp_min(1)


def _by_class(precision: Tensor, labels: Tensor) -> tuple[float | None, ...]:
    classes = (precision[labels == label] for label in range(int(labels.max()) + 1))
    return tuple(float(members.mean()) if len(members) else None for members in classes)


def _spread(size: int, count: int) -> Tensor:
    count = min(count, size)
    return torch.arange(count) * size // max(1, count)


def _example(features: FeatureSet, train: Tensor, test: Tensor, top: Tensor, row: int) -> dict[str, Any]:
    neighbours = [
        {
            "index": int(column),
            "label": int(features.train_labels[column]),
            "cosine": round(float(test[row] @ train[column]), 4),
        }
        for column in top[row]
    ]
    return {"index": row, "label": int(features.test_labels[row]), "neighbours": neighbours}
