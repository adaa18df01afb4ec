"""Training of a linear classifier on augmented images by SGD, with the backbone frozen or not.

The optimiser is the released code's: Nesterov momentum .9, no decay, no warm-up, the cosine per step, weights from
N(0, .01) [C].  Batch order and crops are functions of (seed, epoch, step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wcl_core.config import AugmentConfig
from wcl_core.data import Split, derived_seed, epoch_order
from wcl_core.images.augment import random_view
from wcl_core.schedule import learning_rate

_MOMENTUM = 0.9
_INITIAL_DEVIATION = 0.01


@dataclass(frozen=True)
class Recipe:
    """The length, the batches and the crops of a classifier's training.

    Attributes:
        epochs, batch_size: passes over the images, and images a step.
        crop_scale_min: smallest crop as a share of the image's area.
        flip_probability: probability of a horizontal flip.
        image_size: side of the crops, in pixels.
        seed: seed of order and crops.
    """

    epochs: int
    batch_size: int
    crop_scale_min: float
    flip_probability: float
    image_size: int
    seed: int

    @property
    def augmentation(self) -> AugmentConfig:
        """Random resized crops and flips only."""
        return AugmentConfig(
            scale_min=self.crop_scale_min,
            flip_probability=self.flip_probability,
            jitter_probability=0,
            grayscale_probability=0,
            blur_probability=0,
        )


@dataclass(frozen=True)
class Step:
    """A finished step: its epoch from 0, whether it is the epoch's last one, and the share of all steps done."""

    epoch: int
    is_epoch_end: bool
    share: float


def new_head(feature_dim: int, num_classes: int, seed: int) -> nn.Linear:
    """Return a linear classifier with weights from N(0, .01) and bias 0 [C], a function of the seed only."""
    head = nn.Linear(feature_dim, num_classes)
    generator = torch.Generator().manual_seed(derived_seed(seed, "linear head"))
    with torch.no_grad():
        head.weight.normal_(0, _INITIAL_DEVIATION, generator=generator)
        head.bias.zero_()
    return head


def train(
    logits: Callable[[Tensor], Tensor],
    groups: Sequence[tuple[Sequence[nn.Parameter], float]],
    split: Split,
    index: Tensor,
    recipe: Recipe,
) -> Iterator[Step]:
    """Minimise the mean cross-entropy, and yield after each step.

    Args:
        logits: maps (B, 3, H, W) normalised float32 views to (B, C); it decides where gradients flow.
        groups: parameters, all on one device, and for each group the first rate of its cosine.
        split: the labelled images.
        index: (n,) int64, the images to train on; an epoch takes each once, and its last batch may be smaller.
        recipe: length, batches and crops.
    """
    device = groups[0][0][0].device
    rates = [rate for _, rate in groups]
    optimizer = torch.optim.SGD(
        [{"params": list(parameters), "lr": rate} for parameters, rate in groups], momentum=_MOMENTUM, nesterov=True
    )
    seed = derived_seed(recipe.seed, "classifier")
    steps = -(-len(index) // recipe.batch_size)
    for step in range(total := steps * recipe.epochs):
        epoch, place = divmod(step, steps)
        order = epoch_order(len(index), seed, epoch)
        rows = index[order[place * recipe.batch_size : (place + 1) * recipe.batch_size]]
        views = random_view(
            split.images[rows].to(device),
            recipe.augmentation,
            recipe.image_size,
            seed=seed,
            epoch=epoch,
            step=step,
            view=0,
        )
        loss = F.cross_entropy(logits(views), split.labels[rows].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = learning_rate(step, total, 0, rate)
        optimizer.step()
        yield Step(epoch, place == steps - 1, (step + 1) / total)
