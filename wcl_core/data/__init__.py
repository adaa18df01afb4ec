"""Datasets: images as uint8 tensors, in memory or mapped from a packed file, and the order of a run's batches.

    builtin    scikit-learn's digits (`digits`), datasets that torchvision downloads, datasets of plugins
    folder     a tree of images: `layout` finds its files, `image_file` reads each, `decoding` in processes
    listed     a list of images in place of a tree; `archive` unpacks archives of either
    prepared   such a tree decoded once on a machine, and mapped from the `cache`
    packed     such a tree decoded once into one file, which is mapped; `packing` writes it
    loading    `load` and `describe`, for every kind of dataset; `described` caches descriptions, `file_index` files

    images       the types: ImageData, Split, Description
    label_lists  fixed lists of labelled train images
    held_out     a part of the train split in place of the test split
    samples      a picture of some images of each class
    order, rows  the images of each step, and their transfer to the device

Random views are made in `wcl_core.images`.  The names here are loaded on first use: most descriptions need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wcl_core.data.held_out import with_held_out
    from wcl_core.data.images import DataError, Description, ImageData, Split
    from wcl_core.data.kinds import DatasetKind, kind_of
    from wcl_core.data.label_lists import with_label_lists
    from wcl_core.data.loading import describe, load
    from wcl_core.data.order import derived_seed, epoch_batches, epoch_order
    from wcl_core.data.samples import Samples

__all__ = [
    "DataError",
    "DatasetKind",
    "Description",
    "ImageData",
    "Samples",
    "Split",
    "derived_seed",
    "describe",
    "epoch_batches",
    "epoch_order",
    "kind_of",
    "load",
    "with_held_out",
    "with_label_lists",
]

_MODULES = {
    "DataError": "images",
    "DatasetKind": "kinds",
    "Description": "images",
    "ImageData": "images",
    "Samples": "samples",
    "Split": "images",
    "derived_seed": "order",
    "describe": "loading",
    "epoch_batches": "order",
    "epoch_order": "order",
    "kind_of": "kinds",
    "load": "loading",
    "with_held_out": "held_out",
    "with_label_lists": "label_lists",
}

if not TYPE_CHECKING:  # type checkers read the imports above, and report a name that does not exist

    def __getattr__(name: str) -> Any:
        """Load a name on its first use."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return globals()[name]
