"""View accuracy: whether a network recognises an image by another view of it; it needs no labels. [D]

    N images ──┬── one random view each ─────── features a_1 ... a_N
               └── another random view each ─── features b_1 ... b_N

    the share of the images i whose own b_i is the nearest to a_i by cosine, among all b

The views are those of the training's augmentation, and the same at every measurement.  Chance is 1 / N.  The pixels of
the views themselves are the other baseline, beside the untrained network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wcl_core.config import PretrainSpec
from wcl_core.data import Split, epoch_order
from wcl_core.images.augment import random_view
from wcl_core.methods.heads import normalise
from wcl_core.stop import check

MAX_IMAGES = 512
_CHUNK = 128
_EPOCH = -2  # of the views: an epoch that no training and no monitor batch has


def recognised(backbone: nn.Module, spec: PretrainSpec, split: Split, device: torch.device) -> Tensor:
    """Return which images a network recognises by another view, (N,) bool; its training mode is restored afterwards.

    No global random generator is changed.

    Args:
        backbone: on the device.
        spec: its seed chooses at most 512 images and their views.
        split: the images.
        device: of the network.

    Raises:
        Interrupted: as `wcl_core.stop.check`.
    """
    images = split.plain(epoch_order(len(split), spec.seed, _EPOCH)[:MAX_IMAGES]).to(device)
    was_training = backbone.training
    backbone.eval()
    try:
        first, second = (_features(backbone, spec, images, view) for view in (0, 1))
    finally:
        backbone.train(was_training)
    nearest = (first @ second.T).argmax(dim=1)
    return (nearest == torch.arange(len(images), device=device)).cpu()


def recognised_by_pixels(spec: PretrainSpec, split: Split, device: torch.device) -> Tensor:
    """Return which images their raw pixels recognise, (N,) bool; as `recognised`, with pixels as features."""
    return recognised(nn.Flatten(), spec, split, device)


@torch.no_grad()
def _features(backbone: nn.Module, spec: PretrainSpec, images: Tensor, view: int) -> Tensor:
    """Return the features of a view of each image, (N, D) float32 of unit length."""
    place = {"seed": spec.seed, "epoch": _EPOCH, "step": -1, "view": view}
    views = random_view(images, spec.augmentation, spec.data.image_size, **place)
    chunks = []
    for chunk in views.split(_CHUNK):
        check()
        chunks.append(normalise(backbone(chunk).float()))
    return torch.cat(chunks)
