"""Protocol `linear_sgd`, as published: a linear classifier on frozen features of augmented images, trained by SGD.

Epochs, batch, rate, schedule, initialisation and augmentation are those of the released code [C].  Test images are
resized and centre-cropped to the spec's size as everywhere in this project, without the margin of 256 against 224
pixels, and the last, smaller batch of an epoch is used too [D].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wcl_core.config import LinearSgdConfig
from wcl_core.data import ImageData
from wcl_core.evaluation.accuracy import top1
from wcl_core.evaluation.classifier import Recipe, new_head, train
from wcl_core.evaluation.features import pooled
from wcl_core.evaluation.progress import Progress

VERSION = 1
_RATE_PER_256 = 0.2


@dataclass(frozen=True)
class LinearSgd:
    """The result of training the classifier.

    Attributes:
        batch_size: images a step: as configured, or all images of a smaller train split [D].
        predicted: (M,) int64 classes of the test images after the LAST epoch: the main result.
        best_top1: accuracy of the best epoch, selected on the test split.
        best_epoch: the best epoch, from 1; the first of equal ones.
    """

    batch_size: int
    predicted: Tensor
    best_top1: float
    best_epoch: int


def linear_sgd(
    backbone: nn.Module,
    data: ImageData,
    config: LinearSgdConfig,
    image_size: int,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> LinearSgd:
    """Train the classifier; the backbone is frozen, and its batch norms use their running statistics.

    Args:
        backbone: on the device; maps (N, 3, H, W) normalised floats to (N, D); it stays in eval mode.
        data: both splits.
        config: epochs, batch and augmentation.
        image_size: side of the crops, in pixels.
        seed: seed of head, order and crops.
        progress: receives the progress, and may interrupt.
    """
    batch_size = min(config.batch_size, len(data.train))
    backbone.eval()
    test = pooled(backbone, data.test, device).to(device)
    head = new_head(test.shape[1], len(data.classes), seed).to(device)

    def logits(views: Tensor) -> Tensor:
        with torch.no_grad():
            h = backbone(views).float()
        scores: Tensor = head(h)
        return scores

    recipe = Recipe(config.epochs, batch_size, config.crop_scale_min, config.flip_probability, image_size, seed)
    rate = _RATE_PER_256 * batch_size / 256
    accuracies, predicted = [], data.test.labels
    for step in train(logits, [(list(head.parameters()), rate)], data.train, torch.arange(len(data.train)), recipe):
        if step.is_epoch_end:
            with torch.no_grad():
                predicted = head(test).argmax(dim=1).cpu()
            accuracies.append(top1(predicted, data.test.labels))
        progress.tick(step.share)
    best = max(accuracies)
    return LinearSgd(batch_size, predicted, best, accuracies.index(best) + 1)
