"""Held-out images: a part of the train split in place of the test split, for choosing hyper-parameters."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from wcl_core.config import held_out_count
from wcl_core.data.images import DataError, ImageData, Split, fits_memory, tensor_digest
from wcl_core.data.order import derived_seed


def with_held_out(data: ImageData, share: float) -> ImageData:
    """Return the data with a share of each train class moved from the train split to the place of the test split.

    The choice of images depends on labels and share only, so all methods and seeds are ranked on the same images. The
    test split itself and the lists of train images are dropped.  Without labels a share of all images is moved.

    Args:
        data: as loaded, in memory or mapped from the cache of decoded folders; the result is in memory.
        share: in [0, 1); 0 changes nothing.

    Raises:
        DataError: the data is mapped from a packed file or does not fit into memory, or a class has no image left in
            one of the splits.
    """
    if share == 0:
        return data
    whole = data.shown
    if whole.is_mapped and not whole.files:
        raise DataError(
            f"data.held_out_share is {share:g}, but {data.name} is packed, and only images in memory can be held out; "
            "use 0"
        )
    if whole.is_mapped and not fits_memory(whole.images.nbytes):
        raise DataError(
            f"data.held_out_share is {share:g}, but the train images of {data.name} do not fit into memory; use 0"
        )
    is_held = held_out(whole.labels, share)
    if not data.has_labels:
        rest, held = (_part(whole, side.nonzero().flatten()) for side in (~is_held, is_held))
        if data.unlabelled is None:
            return replace(data, train=rest, test=held, label_lists={})
        return replace(data, unlabelled=rest, test=held)
    for side in (is_held, ~is_held):
        absent = data.train.labels[side].bincount(minlength=len(data.classes)).eq(0).nonzero().flatten()
        if len(absent):
            raise DataError(
                f"data.held_out_share is {share:g}, which leaves class {data.classes[int(absent[0])]} of {data.name} "
                "without an image in one of the two splits; each class needs at least 2 train images"
            )
    train, held = (_part(data.train, side.nonzero().flatten()) for side in (~is_held, is_held))
    return replace(data, train=train, test=held, label_lists={})


def held_out(labels: Tensor, share: float) -> Tensor:
    """Return a mask of a random share of each class, see `held_out_count`: (N,) bool.

    Args:
        labels: (N,) int64.
        share: in (0, 1).
    """
    generator = torch.Generator().manual_seed(derived_seed(0, "held out"))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        count = held_out_count(len(members), share)
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return chosen


def _part(split: Split, rows: Tensor) -> Split:
    images, labels = split.images[rows], split.labels[rows]
    files = tuple(split.files[row] for row in rows.tolist()) if split.files else ()
    digest = tensor_digest(images, labels)
    return replace(split, images=images, labels=labels, digest=digest, files=files, is_mapped=False, held=None)
