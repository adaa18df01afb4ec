"""Protocol `few_labels`: nearest class mean or a linear classifier on repeated draws of a few labels per class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wcl_core.config import FewLabelsClassifier
from wcl_core.data import derived_seed
from wcl_core.evaluation.features import FeatureSet
from wcl_core.evaluation.knn import ProtocolError
from wcl_core.evaluation.linear import classes, fit, standard
from wcl_core.methods.heads import normalise
from wcl_core.stop import check

VERSION = 1
LINEAR_STRENGTH = 1.0


@dataclass(frozen=True)
class FewLabels:
    """The test accuracy over the draws.

    Attributes:
        accuracies: of each draw, in 0..1.
        correct: (M,) int64 draws whose classifier was right, by test image.
    """

    accuracies: tuple[float, ...]
    correct: Tensor

    @property
    def mean(self) -> float:
        return float(torch.tensor(self.accuracies, dtype=torch.float64).mean())

    @property
    def stderr(self) -> float:
        """The standard error of the mean over the draws."""
        return float(torch.tensor(self.accuracies, dtype=torch.float64).std() / math.sqrt(len(self.accuracies)))


def few_labels(
    features: FeatureSet,
    labels_per_class: int,
    draws: int,
    seed: int,
    classifier: FewLabelsClassifier = "nearest_class_mean",
) -> FewLabels:
    """Return the test accuracy with a few labelled train images per class.

    The draws depend on labels and seed only, so all features of one dataset and all classifiers get the same ones.
    `nearest_class_mean`: features and class means are L2-normalised.  `linear`: logistic regression with C = 1 on
    features that are standardised over the whole train split, without its labels; there are too few labels
    to choose C on a part of them [D].

    Args:
        features: both splits.
        labels_per_class: number of labelled images of each class.
        draws: number of repetitions, >= 2.
        seed: seed of the draws.
        classifier: the classifier to train on the labelled images.

    Raises:
        ProtocolError: a class has fewer train images than `labels_per_class`.
    """
    if labels_per_class > features.smallest_class:
        raise ProtocolError(
            f"labels_per_class = {labels_per_class} is more than the {features.smallest_class} images of the smallest "
            f"train class; use at most {features.smallest_class}"
        )
    predict = {"nearest_class_mean": _nearest_class_mean, "linear": _linear}[classifier](features)
    accuracies, correct = [], torch.zeros(len(features.test_labels), dtype=torch.int64)
    for draw in range(draws):
        check()
        index = draw_labelled(features.train_labels, labels_per_class, seed, draw)
        hits = predict(index) == features.test_labels
        accuracies.append(float(hits.double().mean()))
        correct += hits
    return FewLabels(tuple(accuracies), correct)


def _nearest_class_mean(features: FeatureSet) -> Callable[[Tensor], Tensor]:
    train, test = normalise(features.train), normalise(features.test)
    return lambda index: (test @ normalise(train[index].mean(dim=1)).T).argmax(dim=1)


def _linear(features: FeatureSet) -> Callable[[Tensor], Tensor]:
    mean, deviation = standard(features.train)
    train, test = (features.train - mean) / deviation, (features.test - mean) / deviation

    def predict(index: Tensor) -> Tensor:
        rows = index.flatten()
        return classes(test, fit(train[rows], features.train_labels[rows], LINEAR_STRENGTH))

    return predict


def draw_labelled(labels: Tensor, labels_per_class: int, seed: int, draw: int) -> Tensor:
    """Draw the indices of the labelled images: (classes, labels_per_class) int64, without repeats."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "few labels", labels_per_class, draw))
    rows = []
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        rows.append(members[torch.randperm(len(members), generator=generator)[:labels_per_class]])
    return torch.stack(rows)
