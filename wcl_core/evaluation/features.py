"""The cached features that all protocols share: computed once, in eval mode, without augmentation.

A dataset without labels has those of its unlabelled split only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

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
        train, test: (N, D) and (M, D) float32; empty in a dataset without labels.
        train_labels, test_labels: (N,) and (M,) int64.
        unlabelled: (U, D) float32 of the images without labels; empty if they were not asked for.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    unlabelled: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    @property
    def smallest_class(self) -> int:
        """The train images of the smallest class; 0 if only the test split has the class."""
        num_classes = int(max(self.train_labels.max(), self.test_labels.max())) + 1
        return int(self.train_labels.bincount(minlength=num_classes).min())


def network_features(
    backbone: nn.Module,
    data: ImageData,
    device: torch.device,
    *,
    has_unlabelled: bool = False,
    tick: Callable[[float], None] | None = None,
) -> FeatureSet:
    """Compute the pooled features of both splits; the backbone's training mode is restored afterwards.

    Args:
        has_unlabelled: also compute those of further images without labels.
        tick: called after each batch with the finished share of all images.
    """
    has_more = data.unlabelled is not None and (has_unlabelled or not len(data.train))
    total = len(data.train) + len(data.test) + (len(data.unlabelled) if has_more and data.unlabelled else 0)
    finished = 0

    def advance(count: int) -> None:
        nonlocal finished
        finished += count
        if tick is not None:
            tick(finished / total)

    was_training = backbone.training
    backbone.eval()
    try:
        return _features(data, lambda split: pooled(backbone, split, device, advance), has_unlabelled)
    finally:
        backbone.train(was_training)


def pixel_features(data: ImageData, *, has_unlabelled: bool = False) -> FeatureSet:
    """Return the raw pixels, scaled to [0, 1] and flattened: the baseline of every representation."""
    return _features(data, lambda split: split.plain(slice(None)).flatten(1).float() / 255, has_unlabelled)


def _features(data: ImageData, compute: Callable[[Split], Tensor], has_unlabelled: bool) -> FeatureSet:
    if not len(data.train) and data.unlabelled is not None:
        none = torch.empty(0, 0)
        return FeatureSet(none, data.train.labels, none, data.test.labels, compute(data.unlabelled))
    both = FeatureSet(compute(data.train), data.train.labels, compute(data.test), data.test.labels)
    if has_unlabelled and data.unlabelled is not None:
        return replace(both, unlabelled=compute(data.unlabelled))
    return both


@torch.no_grad()
def pooled(
    backbone: nn.Module, split: Split, device: torch.device, advance: Callable[[int], None] | None = None
) -> Tensor:
    """Return a network's outputs for a split, (N, D) float32 on the CPU; the caller sets training or eval mode.

    Args:
        advance: called after each batch with the number of its images.
    """
    chunks = []
    for start in range(0, len(split), _BATCH_SIZE):
        check()
        images = split.plain(slice(start, start + _BATCH_SIZE)).to(device)
        chunks.append(backbone(normalised(images)).float().cpu())
        if advance is not None:
            advance(len(images))
    return torch.cat(chunks)
