"""Datasets: images as uint8 tensors, in memory or mapped from a packed file, and the order of a run's batches.

    builtin    scikit-learn's digits, datasets that torchvision downloads, datasets of plugins
    folder     a tree of class folders, decoded at each start; `described` keeps its description beside it
    packed     such a tree decoded once into one file, which is mapped; `packing` writes it
    loading    `load` and `describe`, for every kind of dataset

    images       the types: ImageData, Split, Description
    label_lists  fixed lists of labelled train images
    held_out     a part of the train split in place of the test split
    samples      a picture of some images of each class
    order, rows  the images of each step, and their transfer to the device

Random views are made in `wcl_core.images`.
"""

from wcl_core.data.held_out import with_held_out
from wcl_core.data.images import DataError, DatasetKind, Description, ImageData, Split
from wcl_core.data.label_lists import with_label_lists
from wcl_core.data.loading import describe, kind_of, load
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
