"""Protocols `knn` and `knn_wide`: weighted k-nearest-neighbour classification (Wu et al., CVPR 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from wcl_core.config import largest_k
from wcl_core.evaluation.features import FeatureSet
from wcl_core.methods.heads import normalise
from wcl_core.stop import check

VERSION = 1
_ROWS = 1024
_MOST_VALUES = 2**26  # of the train features times the rows: about a second on a few cores


class ProtocolError(ValueError):
    """A protocol cannot measure this data; the message names the field to change."""


def knn_correct(features: FeatureSet, k: int, temperature: float, field: str = "knn_k") -> Tensor:
    """Return the test images whose class wins the vote of their k nearest train images: (M,) bool.

    Features are L2-normalised, not centred; a neighbour votes with exp(cos / T).

    Args:
        features: both splits.
        k: number of neighbours; at most `largest_k` of the smallest train class.
        temperature: T, > 0.
        field: name of the field that k comes from, for the error.

    Raises:
        ProtocolError: k is above half of the smallest train class, so votes would be meaningless.
    """
    if k > (limit := largest_k(features.smallest_class)):
        raise ProtocolError(
            f"{field} = {k} is above half of the {features.smallest_class} images of the smallest train class; use at "
            f"most {limit}"
        )
    train, test = normalise(features.train), normalise(features.test)
    size = min(_ROWS, max(16, _ROWS * _MOST_VALUES // max(1, train.numel())))
    votes = torch.cat([_votes(rows, train, features.train_labels, k, temperature) for rows in test.split(size)])
    return votes.argmax(dim=1) == features.test_labels


def _votes(queries: Tensor, train: Tensor, labels: Tensor, k: int, temperature: float) -> Tensor:
    """Return the sums of the neighbours' weights by class: (Q, C) float32."""
    check()
    similarity, index = (queries @ train.T).topk(k, dim=1)
    # Subtract the largest cosine, a common factor: then no weight overflows, and at a small T not all become 0.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    return torch.zeros(len(queries), int(labels.max()) + 1).scatter_add_(1, labels[index], weights)
