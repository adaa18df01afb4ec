"""The parameters of each sample's augmentation, drawn at random on the CPU; `augment` applies them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wcl_core.config import AugmentConfig
from wcl_core.data import derived_seed
from wcl_core.distributed import SINGLE, Ranks
from wcl_core.transfer import send

_BLUR_SIGMA = (0.1, 2.0)
_ASPECT = (3 / 4, 4 / 3)
_CROP_TRIES = 10
# The operations of the colour jitter by number; brightness is 0.  All but the hue are linear in the pixels.
_CONTRAST, _SATURATION, _HUE = 1, 2, 3


class Draws:
    """Random numbers for each sample, drawn on the CPU, so that they are the same for every device.

    They are drawn for the `size` samples of the global batch; the methods return those of this rank's N samples.
    """

    def __init__(self, size: int, generator: torch.Generator, ranks: Ranks = SINGLE) -> None:
        self._size, self._generator, self._own = size, generator, ranks.own(size)

    def uniform(self, low: float, high: float) -> Tensor:
        """Return (N,) float32 in [low, high)."""
        return torch.rand(self._size, generator=self._generator)[self._own] * (high - low) + low

    def tries(self, count: int, low: float, high: float) -> Tensor:
        """Return (count, N) float32 in [low, high)."""
        return torch.rand(count, self._size, generator=self._generator)[:, self._own] * (high - low) + low

    def chance(self, probability: float) -> Tensor:
        """Return (N,) bool, each True with the probability."""
        return torch.rand(self._size, generator=self._generator)[self._own] < probability

    def orders(self, length: int) -> Tensor:
        """Return (N, length) int64, each row a random permutation."""
        return torch.rand(self._size, length, generator=self._generator)[self._own].argsort(dim=1)


@dataclass(frozen=True)
class Operations:
    """The operations that can occur for a sample; the others are left out for all samples.

    Attributes:
        turns: the linear operations of the colour jitter.
        hue, grey, blur: the operations that are computed for a share of the samples.
    """

    turns: bool
    hue: bool
    grey: bool
    blur: bool

    @staticmethod
    def of(*configs: AugmentConfig) -> Operations:
        """Return the operations that any of the augmentations has."""
        jittered = [config for config in configs if config.jitter_probability > 0]
        return Operations(
            turns=any(config.brightness or config.contrast or config.saturation for config in jittered),
            hue=any(config.hue > 0 for config in jittered),
            grey=any(config.grayscale_probability > 0 for config in configs),
            blur=any(config.blur_probability > 0 for config in configs),
        )


@dataclass(frozen=True)
class ViewParameters:
    """The parameters of N samples.

    Attributes:
        values: (16, N) float32; the properties name its rows.
        masks: (6, N) bool.  Rows 0 to 3: the hue is turned before the first, second or third linear operation, or after
            them; row 4: the sample becomes grey; row 5: it is blurred.
        operations: those that can occur for these samples.
    """

    values: Tensor
    masks: Tensor
    operations: Operations

    @staticmethod
    def drawn(config: AugmentConfig, height: int, width: int, draws: Draws, scale_max: float = 1.0) -> ViewParameters:
        """Draw parameters for images of height x width pixels."""
        crop = _crops(config, height, width, draws, scale_max)
        strengths = (config.brightness, config.contrast, config.saturation)
        factors = torch.stack([draws.uniform(max(0.0, 1 - strength), 1 + strength) for strength in strengths])
        hue, order = draws.uniform(-config.hue, config.hue), draws.orders(4)
        is_jittered = draws.chance(config.jitter_probability)
        is_turned = is_jittered & (config.hue > 0)
        is_grey = draws.chance(config.grayscale_probability)
        sigma, is_blurred = draws.uniform(*_BLUR_SIGMA), draws.chance(config.blur_probability)
        turns = _turns(torch.where(is_jittered, factors, 1.0), order)
        values = torch.cat((crop, turns.flatten(0, 1), hue[None], sigma[None]))
        masks = torch.cat(((order.T == _HUE) & is_turned, is_grey[None], is_blurred[None]))
        return ViewParameters(values, masks, Operations.of(config))

    @property
    def crop(self) -> Tensor:
        """(5, N): top, left, height and width of the crop in pixels, and its direction: -1 mirrored, 1 not."""
        return self.values[:5]

    @property
    def turns(self) -> Tensor:
        """(3, 3, N): for each of the three linear operations, the weights of pixel, grey and mean grey."""
        return self.values[5:14].view(3, 3, -1)

    @property
    def hue(self) -> Tensor:
        """(N,): turn of the hue as a share of the circle."""
        return self.values[14]

    @property
    def sigma(self) -> Tensor:
        """(N,): deviation of the blur, uniform in [0.1, 2) pixels of the view. [C]"""
        return self.values[15]

    def map(self, change: Callable[[Tensor], Tensor]) -> ViewParameters:
        """Return the parameters with `change` applied to both tensors."""
        return ViewParameters(change(self.values), change(self.masks), self.operations)

    def part(self, rows: slice) -> ViewParameters:
        """Return the parameters of some consecutive samples."""
        return self.map(lambda tensor: tensor[:, rows])

    def rows(self, device: torch.device) -> list[Tensor]:
        """Return the samples of each mask, which are on the CPU, as indices on the device, in one transfer."""
        counts, index = self.masks.sum(dim=1).tolist(), self.masks.nonzero()[:, 1].contiguous()
        return list(torch.split(send(index, device), counts))


def draw_parameters(
    shape: tuple[int, int, int],
    config: AugmentConfig,
    *,
    seed: int,
    epoch: int,
    step: int,
    view: int,
    ranks: Ranks = SINGLE,
    scale_max: float = 1.0,
) -> ViewParameters:
    """Draw the parameters of one random view of each image, on the CPU.

    Args:
        shape: number, height and width of the images; with several ranks, of this rank's part of the global batch.
        config: probabilities and strengths.
        seed, epoch, step, view: the random numbers are a function of these; `step` counts within the run.
        ranks: the ranks; numbers are drawn for the global batch, so that a view does not depend on the ranks.
        scale_max: area of the largest crop as a share of the image, in (0, 1]; `config` has the smallest.
    """
    count, height, width = shape
    generator = torch.Generator().manual_seed(derived_seed(seed, "view", epoch, step, view))
    return ViewParameters.drawn(config, height, width, Draws(count * ranks.size, generator, ranks), scale_max)


def _crops(config: AugmentConfig, height: int, width: int, draws: Draws, scale_max: float) -> Tensor:
    """Draw crops with an area share in (scale_min, scale_max) and an aspect ratio in (3/4, 4/3); see `crop`.

    Unlike in torchvision, sides are not rounded to whole pixels. [D]
    """
    crop_h, crop_w = _crop_sides(config.scale_min, height, width, draws, scale_max)
    top, left = (draws.uniform(0, 1) * room for room in (height - crop_h, width - crop_w))
    direction = torch.where(draws.chance(config.flip_probability), -1.0, 1.0)
    return torch.stack((top, left, crop_h, crop_w, direction))


def _crop_sides(scale_min: float, height: int, width: int, draws: Draws, scale_max: float = 1.0) -> Tensor:
    """Return height and width of each crop, (2, N): the first of ten draws that fits, otherwise the whole image."""
    area = draws.tries(_CROP_TRIES, scale_min, scale_max) * (height * width)
    aspect = draws.tries(_CROP_TRIES, math.log(_ASPECT[0]), math.log(_ASPECT[1])).exp()
    sides = torch.stack(((area / aspect).sqrt(), (area * aspect).sqrt())).clamp_min(1)
    whole = torch.tensor((height, width), dtype=sides.dtype)[:, None]
    fits = (sides <= whole[:, None]).all(dim=0)
    first = fits.int().argmax(dim=0)
    chosen = sides.gather(1, first.expand(2, 1, -1)).squeeze(1)
    return torch.where(fits.any(dim=0), chosen, whole)


def _turns(factors: Tensor, order: Tensor) -> Tensor:
    """Return the weights of pixel, grey and mean grey for each of the three linear operations, (3, 3, N).

    Args:
        factors: (3, N) factors of brightness, contrast and saturation; 1 changes nothing.
        order: (N, 4) order of the four operations of the colour jitter.
    """
    which = order[order != _HUE].view(-1, 3).T
    factor = factors.gather(0, which)
    rest = 1 - factor
    return torch.stack((factor, rest * (which == _SATURATION), rest * (which == _CONTRAST)), dim=1)
