"""Protocol `semi_supervised`: all weights are fine-tuned on a class-balanced share of the labels, or on a fixed list.

Splits, rates and crops are this project's own [D]: those of the paper are not known, so its 65.0 (1 %) and 72.0 (10 %)
are reference values, not targets.  Batch norms keep the running statistics of the checkpoint, and
only their gains and biases are tuned: so few images give no good statistics [D].
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wcl_core.config import SemiSupervisedConfig, labels_per_class
from wcl_core.data import ImageData, derived_seed
from wcl_core.data.label_lists import index_digest
from wcl_core.evaluation.classifier import Recipe, new_head, train
from wcl_core.evaluation.features import pooled
from wcl_core.evaluation.knn import ProtocolError
from wcl_core.evaluation.progress import Progress

VERSION = 1


@dataclass(frozen=True)
class SemiSupervised:
    """The accuracy over the splits of one share of the labels.

    Attributes:
        labels: labelled images in all.
        accuracies: test accuracy on each split, or after each training on a list, in 0..1.
        split_digests: `index_digest` of each split; one digest for a list.
        correct: (M,) int64 trainings whose network was right, by test image.
    """

    labels: int
    accuracies: tuple[float, ...]
    split_digests: tuple[str, ...]
    correct: Tensor

    @property
    def mean(self) -> float:
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def stderr(self) -> float:
        """The standard error of the mean over the splits or trainings."""
        deviation = torch.tensor(self.accuracies, dtype=torch.float64).std()
        return float(deviation) / math.sqrt(len(self.accuracies))

    @property
    def digest(self) -> str:
        """The digest of all splits together, in order."""
        return hashlib.sha256("".join(self.split_digests).encode()).hexdigest()


def labelled_split(labels: Tensor, share: float, seed: int, number: int) -> Tensor:
    """Return the indices of a class-balanced share: (classes * max(1, round(share N / classes)),) int64, ascending.

    A function of labels, share, seed and number only, so all methods are tuned on the same splits.

    Raises:
        ProtocolError: a class has too few images.
    """
    num_classes = int(labels.max()) + 1
    per_class = labels_per_class(share, len(labels), num_classes)
    smallest = int(labels.bincount().min())
    if per_class > smallest:
        raise ProtocolError(
            f"semi_supervised.shares: {share:g} of the labels is {per_class} a class, but the smallest train class "
            f"has {smallest} images; use a smaller share"
        )
    generator = torch.Generator().manual_seed(derived_seed(seed, "semi-supervised", str(share), number))
    chosen = []
    for label in range(num_classes):
        members = (labels == label).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    return torch.cat(chosen).sort().values


def semi_supervised(
    backbone: nn.Module,
    data: ImageData,
    config: SemiSupervisedConfig,
    labelled: Sequence[Tensor],
    image_size: int,
    seed: int,
    device: torch.device,
    progress: Progress,
    done: tuple[float, float] = (0.0, 1.0),
) -> SemiSupervised:
    """Fine-tune a copy of the backbone and a new linear head on each split, or several times on a single one.

    Args:
        backbone: the start of each training; it is not changed.
        data: both splits.
        config: splits, epochs, batch, rates of backbone and head.
        labelled: (n,) int64 train indices, for each of `config.splits` splits or for a single one.
        image_size: side of the crops, in pixels.
        seed: seed of heads, order and crops.
        progress: receives the progress, and may interrupt.
        done: the shares of the whole protocol that are done before and after this call.
    """
    accuracies, correct = [], torch.zeros(len(data.test), dtype=torch.int64)
    for number in range(config.splits):
        index = labelled[number % len(labelled)]
        tuned = copy.deepcopy(backbone).to(device).eval()
        tuned.requires_grad_(True)
        feature_dim = int(tuned(torch.zeros(1, 3, image_size, image_size, device=device)).shape[1])
        head = new_head(feature_dim, len(data.classes), seed).to(device)
        groups = [
            (list(tuned.parameters()), config.backbone_learning_rate),
            (list(head.parameters()), config.head_learning_rate),
        ]
        network = nn.Sequential(tuned, head)
        recipe = Recipe(
            config.epochs,
            min(config.batch_size, len(index)),
            config.crop_scale_min,
            config.flip_probability,
            image_size,
            derived_seed(seed, "semi-supervised", number),
        )
        for step in train(network, groups, data.train, index, recipe):
            progress.tick(done[0] + (done[1] - done[0]) * (number + step.share) / config.splits)
        hits = pooled(network, data.test, device).argmax(dim=1) == data.test.labels
        accuracies.append(float(hits.double().mean()))
        correct += hits
    return SemiSupervised(len(labelled[0]), tuple(accuracies), tuple(map(index_digest, labelled)), correct)
