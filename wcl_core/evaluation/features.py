"""The cached features that all protocols share: computed once, in eval mode, without augmentation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wcl_core.data import ImageData, Split
from wcl_core.images.augment import normalised
from wcl_core.stop import check

_BATCH_SIZE = 512


@dataclass(frozen=True)
class FeatureSet:
    """Features and labels of both splits, on the CPU.

    Attributes:
        train, test: (N, D) and (M, D) float32.
        train_labels, test_labels: (N,) and (M,) int64.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @property
    def smallest_class(self) -> int:
        """The train images of the smallest class; 0 if only the test split has the class."""
        num_classes = int(max(self.train_labels.max(), self.test_labels.max())) + 1
        return int(self.train_labels.bincount(minlength=num_classes).min())


def network_features(backbone: nn.Module, data: ImageData, device: torch.device) -> FeatureSet:
    """Compute the pooled features of both splits; the backbone's training mode is restored afterwards."""
    was_training = backbone.training
    backbone.eval()
    try:
        train, test = (pooled(backbone, split, device) for split in (data.train, data.test))
    finally:
        backbone.train(was_training)
    return FeatureSet(train, data.train.labels, test, data.test.labels)


def pixel_features(data: ImageData) -> FeatureSet:
    """Return the raw pixels, scaled to [0, 1] and flattened: the baseline of every representation."""
    train, test = (split.plain(slice(None)).flatten(1).float() / 255 for split in (data.train, data.test))
    return FeatureSet(train, data.train.labels, test, data.test.labels)


@torch.no_grad()
def pooled(backbone: nn.Module, split: Split, device: torch.device) -> Tensor:
    """Return a network's outputs for a split, (N, D) float32 on the CPU; the caller sets training or eval mode."""
    chunks = []
    for start in range(0, len(split), _BATCH_SIZE):
        check()
        images = split.plain(slice(start, start + _BATCH_SIZE)).to(device)
        chunks.append(backbone(normalised(images)).float().cpu())
    return torch.cat(chunks)
