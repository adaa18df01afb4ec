"""Random views of a batch, computed on the device, with separate parameters for every sample.

    draw_parameters ── ViewParameters ── crop and flip ── jitter ── grayscale ── blur ── normalisation

The operations are those of the released recipe [C]: random resized crop, colour jitter in random order, grayscale,
Gaussian blur, horizontal flip, normalisation.  The batched form is defined by this project [D]:

- An operation that is linear in the pixels of an axis is one matrix for each sample: the crop with its antialiased
  resampling and flip, and the blur with its reflected edges.
- Brightness, contrast and saturation are one formula with three numbers for each sample, so that each sample can have
  its own order at no cost.
- An operation for a share of the samples is computed for those samples only (`view_of`), or, with shapes that no value
  changes, for all of them (`fixed_view_of`).

All randomness comes from a generator seeded by (seed, epoch, step, view), so views do not depend on the device, the
rank or earlier steps.  The marks are explained in `wcl_core.methods`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wcl_core.config import AugmentConfig
from wcl_core.images.view_parameters import ViewParameters, draw_parameters
from wcl_core.transfer import constant, send

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_LUMA = (0.2989, 0.587, 0.114)
_BLUR_RADIUS = 6  # pixels: three deviations of the widest blur, so that the kernel does not cut it off
# On a CPU a chunk of views stays in the cache from the crop to the end.
_CPU_CHUNK_VALUES = 2**20


def normalised(images: Tensor) -> Tensor:
    """Return (N, 3, H, W) uint8 images as float32, normalised by ImageNet's mean and deviation."""
    return _normalise(images.float().div_(255))


def random_view(images: Tensor, config: AugmentConfig, image_size: int, **place: Any) -> Tensor:
    """Return one random view of each image; `view_of` with parameters of `draw_parameters` at a place.

    Args:
        images: (N, 3, H, W) uint8 on any device; with several ranks, this rank's part of the global batch.
        config: probabilities and strengths.
        image_size: side of the view in pixels.
        place: keyword arguments of `draw_parameters`.

    Returns:
        (N, 3, image_size, image_size) float32, normalised.
    """
    count, _, height, width = images.shape
    return view_of(images, draw_parameters((count, height, width), config, **place), image_size)


def view_of(images: Tensor, parameters: ViewParameters, image_size: int) -> Tensor:
    """Return the view of each image with the given parameters, normalised: (N, 3, image_size, image_size) float32.

    An operation for a share of the samples is computed for those only, so the masks have to be on the CPU.

    Args:
        images: (N, 3, H, W) uint8 on any device.
        parameters: of each image, on the CPU.
        image_size: side of the view in pixels.
    """
    count, device = len(images), images.device
    values = send(parameters.values, device)
    views = torch.empty(count, 3, image_size, image_size, device=device)
    size = count if images.is_cuda else max(1, _CPU_CHUNK_VALUES // (3 * image_size**2))
    for start in range(0, count, size):
        rows = slice(start, start + size)
        part = parameters.part(rows)
        placed = replace(part, values=values[:, rows])
        views[rows] = _changed(_resized_crop(images[rows], placed.crop, image_size), placed, part.rows(device))
    return views


def fixed_view_of(images: Tensor, parameters: ViewParameters, image_size: int) -> Tensor:
    """Return `view_of` with shapes that depend on no value, as compilers and CUDA graphs need them.

    Every operation is computed for all samples, and its mask chooses between its result and the sample.

    Args:
        images: (N, 3, H, W) uint8.
        parameters: of each image, on the device of the images.
        image_size: side of the view in pixels.
    """
    return _changed(_resized_crop(images, parameters.crop, image_size), parameters, list(parameters.masks))


def _changed(x: Tensor, parameters: ViewParameters, chosen: list[Tensor]) -> Tensor:
    """Return the crops with their colours changed, some of them grey or blurred, normalised; x is overwritten.

    Args:
        x: (N, 3, S, S) crops in [0, 1].
        parameters: of each sample, on the device.
        chosen: the samples of each mask, (n,) int64 or (N,) bool.
    """
    *hue, grey, blurred = chosen
    _jitter_(x, parameters, hue)
    if parameters.operations.grey:
        _apply_(x, grey, lambda samples: _grey(samples).expand_as(samples))
    if parameters.operations.blur:
        _apply_(x, blurred, lambda samples, sigma: _gaussian(samples, sigma, _BLUR_RADIUS), parameters.sigma)
    return _normalise(x)


def _jitter_(x: Tensor, parameters: ViewParameters, chosen: list[Tensor]) -> None:
    """Apply the three linear operations in each sample's order, and its hue turn before, between or after them."""
    for place, samples in enumerate(chosen):
        if parameters.operations.hue:
            _apply_(x, samples, _hue, parameters.hue)
        if place < len(parameters.turns) and parameters.operations.turns:
            _turn_(x, *parameters.turns[place])


def _apply_(x: Tensor, chosen: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> None:
    """Replace the chosen samples of x by operation(samples, their parameters)."""
    if chosen.dtype == torch.bool:
        x.copy_(torch.where(chosen[:, None, None, None], operation(x, *parameters), x))
    elif len(chosen):
        # index_select, because x[chosen] takes several times as long on a CPU.
        own = [values.index_select(0, chosen) for values in parameters]
        x.index_copy_(0, chosen, operation(x.index_select(0, chosen), *own))


def _resized_crop(images: Tensor, crop: Tensor, size: int) -> Tensor:
    """Return each crop resampled bilinearly with antialiasing, mirrored if its direction is -1: (N, 3, size, size).

    As in torchvision, the weights are a triangle over the source pixels that widens when the crop shrinks, and pixels
    outside of the image have weight 0.  uint8 pixels become floats in [0, 1].
    """
    top, left, height, width, direction = crop
    down = _resampling(top, height, torch.ones_like(direction), images.shape[-2], size)
    across = _resampling(left, width, direction, images.shape[-1], size)
    if images.dtype == torch.uint8:
        down.div_(255)
    return _separable(images.to(down.dtype), down, across)


def _resampling(start: Tensor, length: Tensor, direction: Tensor, num_pixels: int, size: int) -> Tensor:
    """Return the weights of the source pixels for each pixel of the view along one axis: (N, size, num_pixels)."""
    steps = (torch.arange(size, device=start.device) * 2 + 1) / size - 1  # the view as [-1, 1]
    centres = (start + length / 2)[:, None] + (length / 2 * direction)[:, None] * steps
    pixels = torch.arange(num_pixels, device=start.device) + 0.5
    narrowness = (size / length).clamp(max=1)[:, None, None]
    weights = (centres[:, :, None] - pixels).abs_().mul_(narrowness).neg_().add_(1).clamp_(min=0)
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _separable(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Apply each sample's linear maps, (N, S, H) and (N, T, W), to both axes of (N, C, H, W): (N, C, S, T)."""
    wide = torch.bmm(x.flatten(1, 2), across.mT).unflatten(1, x.shape[1:3])
    return torch.matmul(down[:, None], wide)


def _turn_(x: Tensor, of_pixel: Tensor, of_grey: Tensor, of_mean: Tensor) -> None:
    """Apply brightness, contrast or saturation, given by weights of the pixel, its grey and the image's mean grey."""
    of_pixel, of_grey, of_mean = (weight[:, None, None, None] for weight in (of_pixel, of_grey, of_mean))
    grey = _grey(x)
    offset = (grey.mean(dim=(2, 3), keepdim=True) * of_mean).add(grey.mul_(of_grey))
    torch.addcmul(offset, x, of_pixel, out=x).clamp_(0, 1)


def _grey(x: Tensor) -> Tensor:
    """Return the grey values, (N, 1, H, W), of (N, 3, H, W) colours."""
    red, green, blue = x.split(1, dim=1)
    grey: Tensor = (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    return grey


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` of a full circle, exactly and without branches, which are slow on a CPU.

    Let h be the hue in sixths of the circle from red, in (-3, 3), and the channels be scaled to [0, 1] by the lowest
    and the highest one.  Then green - blue has the sign of h, and its absolute value is |h| near red and 3 - |h|
    opposite of red; the value of red mixes the two.
    """
    red, green, blue = x.split(1, dim=1)
    low = torch.minimum(red, green).minimum(blue)
    chroma = torch.maximum(red, green).maximum(blue).sub_(low)
    scale = chroma.clamp_min(1e-8).reciprocal_()
    side = (green - blue).mul_(scale)
    distance = side.abs()
    distance = torch.lerp(3 - distance, distance, (red - low).mul_(scale))
    sixth = distance.copysign_(side).add_(shift[:, None, None, None], alpha=6)
    sixth.sub_((sixth / 6).floor_(), alpha=6)  # remainder(6) is several times slower on a CPU
    # Red is 1 around 0 and 6, green around 2, blue around 4, each falling to 0 over a sixth.
    turned: Tensor = (sixth - constant((3.0, 2.0, 4.0), x).view(1, 3, 1, 1)).abs_()
    turned[:, 0].sub_(1)
    turned[:, 1:].neg_().add_(2)
    return torch.addcmul(low, turned.clamp_(0, 1), chroma)


def _gaussian(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Apply a separable Gaussian filter with a sigma for each sample to (N, C, S, S); edges are reflected."""
    side = x.shape[-1]
    radius = max(1, min(radius, side - 1))
    positions = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.softmax(-positions.square() / (2 * sigma[:, None].square()), dim=1)
    # The source pixel under each place of the kernel around each pixel: (source pixel, pixel, place).
    source = F.pad(torch.eye(side, device=x.device), (radius, radius), mode="reflect").unfold(1, 2 * radius + 1, 1)
    matrix = (kernel @ source.permute(2, 1, 0).flatten(1)).view(-1, side, side)
    return _separable(x, matrix, matrix)


def _normalise(x: Tensor) -> Tensor:
    """Normalise by ImageNet's mean and deviation, in place."""
    mean = constant(MEAN, x).view(1, 3, 1, 1)
    std = constant(STD, x).view(1, 3, 1, 1)
    return x.sub_(mean).div_(std)
