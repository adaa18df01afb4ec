"""Random views of a batch, on the device, with parameters of their own for every sample.

The operations are those of the released recipe [C]: random resized crop, colour jitter in random order, grayscale,
Gaussian blur, horizontal flip, normalisation.  The batched form is our own [D]: a crop is one affine resampling, after
a low-pass filter where it shrinks by more than 1.5; the order of the four jitter operations is drawn per sample.
What happens to a share of the samples is computed for those samples alone.

All randomness comes from a generator seeded by (seed, epoch, step, view), so views never depend on the device, on the
rank or on what happened before.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from wcl_core.config import AugmentConfig
from wcl_core.data import derived_seed
from wcl_core.distributed import SINGLE, Ranks

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_LUMA = (0.2989, 0.587, 0.114)
_BLUR_SIGMA = (0.1, 2.0)
_BLUR_RADIUS = 6  # three deviations of the widest blur, so that the kernel does not narrow it
_ASPECT = (3 / 4, 4 / 3)
_CROP_TRIES = 10
_PREFILTER_FROM = 1.5


def normalised(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) to float32 of ImageNet's mean and deviation."""
    return _normalise(images.float().div_(255))


def random_view(
    images: Tensor,
    config: AugmentConfig,
    image_size: int,
    *,
    seed: int,
    epoch: int,
    step: int,
    view: int,
    ranks: Ranks = SINGLE,
    scale_max: float = 1.0,
) -> Tensor:
    """One random view of each image.

    Args:
        images: (N, 3, H, W) uint8 on any device; under several ranks this rank's part of the global batch.
        config: probabilities and strengths.
        image_size: side of the view in pixels.
        seed, epoch, step, view: what the random numbers are a function of; `step` counts within the run.
        ranks: whose part `images` is; numbers are drawn for the global batch, so that a view never depends on them.
        scale_max: largest crop as a share of the image's area; `config` has the smallest.

    Returns:
        (N, 3, image_size, image_size) float32, normalised.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, "view", epoch, step, view))
    draw = _Draws(len(images) * ranks.size, generator, images.device, ranks)
    x = images.float().div_(255)
    x = _resized_crop(x, config, image_size, draw, scale_max)
    _jitter_(x, config, draw)
    _apply_(x, draw.rows(draw.chance(config.grayscale_probability))[0], _grey)
    if config.blur_probability > 0:
        _blur_(x, config.blur_probability, draw)
    return _normalise(x)


class _Draws:
    """Per-sample random numbers, drawn on the CPU so that every device sees the same ones.

    They are drawn for the `size` samples of a global batch; the N that are this rank's come out.
    """

    def __init__(self, size: int, generator: torch.Generator, device: torch.device, ranks: Ranks = SINGLE) -> None:
        self._size, self._generator, self._device = size, generator, device
        self._own = ranks.own(size)

    def uniform(self, low: float, high: float) -> Tensor:
        """(N,) float32 in [low, high), on the device."""
        values = torch.rand(self._size, generator=self._generator)[self._own]
        return self.send(values * (high - low) + low)

    def tries(self, count: int, low: float, high: float) -> Tensor:
        """(count, N) float32 in [low, high); stays on the CPU."""
        return torch.rand(count, self._size, generator=self._generator)[:, self._own] * (high - low) + low

    def chance(self, probability: float) -> Tensor:
        """(N,) bool, each True with the probability; stays on the CPU."""
        return torch.rand(self._size, generator=self._generator)[self._own] < probability

    def orders(self, length: int) -> Tensor:
        """(N, length) int64, each row a random permutation; stays on the CPU."""
        return torch.rand(self._size, length, generator=self._generator)[self._own].argsort(dim=1)

    def rows(self, *masks: Tensor) -> list[Tensor]:
        """The indices where each CPU mask is True, on the device; one transfer, and the host knows every length."""
        found = [mask.nonzero().flatten() for mask in masks]
        return list(torch.split(self.send(torch.cat(found)), [len(index) for index in found]))

    def send(self, values: Tensor) -> Tensor:
        """The values on the device, without waiting for it."""
        if self._device.type == "cuda":
            return values.pin_memory().to(self._device, non_blocking=True)
        return values


def _apply_(x: Tensor, rows: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> None:
    """Replace the given samples of x by operation(samples, their parameters as (n, 1, 1, 1))."""
    if len(rows):
        # index_select, because x[rows] copies several times as long on a CPU.
        chosen = [values.index_select(0, rows)[:, None, None, None] for values in parameters]
        x.index_copy_(0, rows, operation(x.index_select(0, rows), *chosen))


def _resized_crop(x: Tensor, config: AugmentConfig, size: int, draw: _Draws, scale_max: float = 1.0) -> Tensor:
    """Random crop of scale (scale_min, scale_max) and aspect 3/4-4/3, resampled bilinearly, and the random flip.

    Sides are torchvision's but for its rounding to whole pixels. [D]
    """
    height, width = x.shape[-2:]
    crop_h, crop_w = _crop_sides(config.scale_min, height, width, draw, scale_max)
    top = draw.uniform(0, 1) * (height - crop_h)
    left = draw.uniform(0, 1) * (width - crop_w)
    flip = draw.send(draw.chance(config.flip_probability))
    if max(height, width) / size > _PREFILTER_FROM:
        shrink = torch.maximum(crop_h, crop_w) / size
        x = _gaussian(x, (0.5 * (shrink.square() - 1).clamp_min(0).sqrt()).clamp(1e-3, height / size), height // size)
    # From the view's [-1, 1] square to the image's: a scale and the crop's centre on each axis.
    scale_x = crop_w / width * torch.where(flip, -1.0, 1.0)
    steps = (torch.arange(size, device=x.device, dtype=x.dtype) * 2 + 1) / size - 1
    grid_x = scale_x[:, None] * steps + ((2 * left + crop_w) / width - 1)[:, None]
    grid_y = (crop_h / height)[:, None] * steps + ((2 * top + crop_h) / height - 1)[:, None]
    grid = torch.stack(torch.broadcast_tensors(grid_x[:, None, :], grid_y[:, :, None]), dim=3)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _crop_sides(scale_min: float, height: int, width: int, draw: _Draws, scale_max: float = 1.0) -> Tensor:
    """Height and width of each crop, (2, N): of ten draws the first that fits into the image, else all of it."""
    area = draw.tries(_CROP_TRIES, scale_min, scale_max) * (height * width)
    aspect = draw.tries(_CROP_TRIES, math.log(_ASPECT[0]), math.log(_ASPECT[1])).exp()
    sides = torch.stack(((area / aspect).sqrt(), (area * aspect).sqrt())).clamp_min(1)
    whole = torch.tensor((height, width), dtype=sides.dtype)[:, None]
    fits = (sides <= whole[:, None]).all(dim=0)
    first = fits.int().argmax(dim=0)
    chosen = sides.gather(1, first.expand(2, 1, -1)).squeeze(1)
    return draw.send(torch.where(fits.any(dim=0), chosen, whole))


def _jitter_(x: Tensor, config: AugmentConfig, draw: _Draws) -> None:
    """Brightness, contrast, saturation and hue in an order of each sample's own, on a share of the samples."""
    jitter = (
        (_brightness, config.brightness, draw.uniform(max(0.0, 1 - config.brightness), 1 + config.brightness)),
        (_contrast, config.contrast, draw.uniform(max(0.0, 1 - config.contrast), 1 + config.contrast)),
        (_saturation, config.saturation, draw.uniform(max(0.0, 1 - config.saturation), 1 + config.saturation)),
        (_hue, config.hue, draw.uniform(-config.hue, config.hue)),
    )
    order = draw.orders(len(jitter))
    is_jittered = draw.chance(config.jitter_probability)
    turns = [
        (operation, factor, (order[:, place] == name) & is_jittered)
        for place in range(len(jitter))
        for name, (operation, strength, factor) in enumerate(jitter)
        if strength > 0
    ]
    if turns:
        rows = draw.rows(*(mask for _, _, mask in turns))
        for (operation, factor, _), chosen in zip(turns, rows, strict=True):
            _apply_(x, chosen, operation, factor)


def _grey(x: Tensor) -> Tensor:
    weights = x.new_tensor(_LUMA).view(1, 3, 1, 1)
    return (x * weights).sum(dim=1, keepdim=True).expand_as(x)


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp_(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(x).mean(dim=(1, 2, 3), keepdim=True).expand_as(x), x, factor.expand_as(x)).clamp_(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(x), x, factor.expand_as(x)).clamp_(0, 1)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` of a full circle, through HSV: exact, without branches."""
    high, low = x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True)
    chroma = high - low
    red, green, blue = x.split(1, dim=1)
    # Each branch has its place on the circle in it, times the chroma, so that one division serves all three.
    after_green = torch.where(high == green, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4))
    sixth = torch.where(high == red, green - blue, after_green).div_(chroma.clamp_min(1e-8))
    offsets = x.new_tensor((5.0, 3.0, 1.0)).view(1, 3, 1, 1)
    k = offsets + sixth.add_(shift, alpha=6)
    k.sub_((k / 6).floor_(), alpha=6)  # k.remainder(6) is several times slower on a CPU
    return torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma).neg_().add_(high)


def _blur_(x: Tensor, probability: float, draw: _Draws) -> None:
    """Gaussian blur of a deviation U(.1, 2) in pixels of the view, on a share of the samples. [C]"""
    sigma = draw.uniform(*_BLUR_SIGMA)
    _apply_(
        x,
        draw.rows(draw.chance(probability))[0],
        lambda chosen, own: _gaussian(chosen, own.flatten(), _BLUR_RADIUS),
        sigma,
    )


def _gaussian(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Separable Gaussian filter with a sigma per sample; edges reflected."""
    radius = max(1, min(radius, x.shape[-1] - 1, x.shape[-2] - 1))
    positions = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.softmax(-positions.square() / (2 * sigma[:, None].square()), dim=1)
    n, channels = x.shape[:2]
    kernel = kernel.repeat_interleave(channels, dim=0)[:, None]
    flat = F.pad(x, (radius, radius, radius, radius), mode="reflect").reshape(1, n * channels, *_padded(x, radius))
    flat = F.conv2d(flat, kernel[:, :, None, :], groups=n * channels)
    flat = F.conv2d(flat, kernel[:, :, :, None], groups=n * channels)
    return flat.reshape(x.shape)


def _padded(x: Tensor, radius: int) -> tuple[int, int]:
    return x.shape[-2] + 2 * radius, x.shape[-1] + 2 * radius


def _normalise(x: Tensor) -> Tensor:
    """To ImageNet's mean and deviation, in place."""
    mean = x.new_tensor(MEAN).view(1, 3, 1, 1)
    std = x.new_tensor(STD).view(1, 3, 1, 1)
    return x.sub_(mean).div_(std)
