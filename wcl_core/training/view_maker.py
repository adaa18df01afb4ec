"""The views of a batch: two random views and, if the spec has them, small crops.

Every view is a function of (seed, epoch, step, number), so a checkpoint keeps no state of views.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wcl_core.config import AugmentConfig, PretrainSpec
from wcl_core.distributed import Ranks
from wcl_core.images.augment import random_view
from wcl_core.methods.views import Views


class ViewMaker:
    """The maker of this rank's views of a step.

    Args:
        config: the spec, with sizes, augmentations and the seed.
        ranks: this rank's part of the global batch.
        memory_format: memory format of the network.
    """

    def __init__(self, config: PretrainSpec, ranks: Ranks, memory_format: torch.memory_format) -> None:
        self._config, self._ranks, self._memory_format = config, ranks, memory_format

    def views(self, images: Tensor, epoch: int, step: int) -> Views:
        """Return two views, numbers 0 and 1, and the small crops, numbers from 2 on, with the same augmentation [D].

        Args:
            images: (B, 3, H, W) uint8, this rank's part of the batch.
            epoch: the epoch from 0; the first ones use the weak augmentation.
            step: number of updates before this one.
        """
        config, crops = self._config, self._config.multi_crop
        augmentation = config.weak_augmentation if epoch < config.weak_augmentation_epochs else config.augmentation
        side = config.data.image_size
        first, second = (self._view(images, augmentation, side, (epoch, step, number)) for number in (0, 1))
        if crops.crops == 0:
            return Views(first, second)
        small, side = augmentation.model_copy(update={"scale_min": crops.scale_min}), crops.side(side)
        numbers = range(2, 2 + crops.crops)
        views = [self._view(images, small, side, (epoch, step, number), crops.scale_max) for number in numbers]
        return Views(first, second, torch.stack(views, dim=1))

    def _view(
        self, images: Tensor, config: AugmentConfig, side: int, place: tuple[int, int, int], scale_max: float = 1.0
    ) -> Tensor:
        epoch, step, number = place
        where = {"seed": self._config.seed, "epoch": epoch, "step": step, "view": number}
        x = random_view(images, config, side, ranks=self._ranks, scale_max=scale_max, **where)
        return x.contiguous(memory_format=self._memory_format)
