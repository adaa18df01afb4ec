"""Few labels per class: nearest class mean over repeated draws of the labelled images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wcl_core.data import derived_seed
from wcl_core.evaluate.features import FeatureSet
from wcl_core.evaluate.knn import ProtocolError
from wcl_core.heads import normalise

VERSION = 1


def few_labels_top1(features: FeatureSet, labels_per_class: int, draws: int, seed: int) -> tuple[float, float]:
    """Test accuracy of the nearest class mean, with a few labelled train images per class.

    Features are L2-normalised and so are the class means.  The draws depend on the labels and the seed alone, so every
    set of features of one dataset meets the same ones.

    Args:
        features: both splits.
        labels_per_class: labelled images of each class.
        draws: number of repetitions, >= 2.
        seed: of the draws.

    Returns:
        (mean accuracy, its standard error over the draws), both in 0..1.

    Raises:
        ProtocolError: when a class has fewer train images.
    """
    if labels_per_class > features.smallest_class:
        raise ProtocolError(
            f"labels_per_class = {labels_per_class}, but the smallest train class has {features.smallest_class}"
        )
    train, test = normalise(features.train), normalise(features.test)
    scores = []
    for draw in range(draws):
        index = draw_labelled(features.train_labels, labels_per_class, seed, draw)
        means = normalise(train[index].mean(dim=1))
        scores.append(float(((test @ means.T).argmax(dim=1) == features.test_labels).double().mean()))
    values = torch.tensor(scores, dtype=torch.float64)
    return float(values.mean()), float(values.std() / math.sqrt(draws))


def draw_labelled(labels: Tensor, labels_per_class: int, seed: int, draw: int) -> Tensor:
    """Indices of the labelled images: (classes, labels_per_class) int64, without repeats."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "few labels", labels_per_class, draw))
    rows = []
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        rows.append(members[torch.randperm(len(members), generator=generator)[:labels_per_class]])
    return torch.stack(rows)
