"""Datasets without a folder: the digits of scikit-learn, datasets that torchvision downloads, datasets of plugins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wcl_core import plugins
from wcl_core.data import digits
from wcl_core.data.images import DataError, ImageData, Split, tensor_digest

BUILTIN = (digits.NAME, "cifar10", "cifar100", "stl10")


@dataclass(frozen=True)
class Source:
    """A dataset before it is resized; a plugin of the group `wcl.datasets` returns one.

    Attributes:
        train, test: images (N, 3, H, W) uint8 and labels (N,) int64.
        classes: names in label order.
        unlabelled: further images, with labels of -1.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: tuple[str, ...]
    unlabelled: tuple[Tensor, Tensor] | None = None


def load_builtin(name: str, cache: Path | None, image_size: int | None) -> ImageData:
    """Load a builtin dataset or a dataset of a plugin.

    Args:
        name: one of `BUILTIN`, or an installed plugin.
        cache: folder that keeps downloaded files; by default a folder in the user's cache.
        image_size: side in pixels; None keeps the size of the source.

    Raises:
        DataError: there is no such dataset, its download failed, or its plugin failed.
    """
    source = _source(name, cache)
    parts = [*source.train, *source.test, *(source.unlabelled or ())]
    unlabelled = None if source.unlabelled is None else _resized(*source.unlabelled, image_size)
    return ImageData(
        name,
        _resized(*source.train, image_size),
        _resized(*source.test, image_size),
        source.classes,
        tensor_digest(*parts),
        unlabelled,
    )


def _source(name: str, cache: Path | None) -> Source:
    if name == digits.NAME:
        return _digits()
    if name in BUILTIN:
        return _fetched(name, cache or _user_cache(name))
    if name in (installed := plugins.names("wcl.datasets")):
        return _of_plugin(name, cache or _user_cache(name))
    raise DataError(f"there is no builtin dataset {name}; expected one of {', '.join(BUILTIN + installed)}")


def _user_cache(name: str) -> Path:
    try:
        return Path.home() / ".cache" / "wcl"
    except RuntimeError as error:
        raise DataError(f"dataset {name}: this user has no home folder to keep its files in; set HOME") from error


def _of_plugin(name: str, cache: Path) -> Source:
    try:
        source = plugins.load("wcl.datasets", name)(cache)
    except Exception as error:  # a plugin raises anything
        raise DataError(f"dataset {name}: its plugin failed: {error}") from error
    if not isinstance(source, Source):
        raise DataError(
            f"dataset {name}: its plugin returned a {type(source).__name__}; expected a wcl_core.data.builtin.Source"
        )
    return source


def _digits() -> Source:
    train, test = ((torch.from_numpy(images), torch.from_numpy(labels)) for images, labels in digits.load_digits())
    return Source(train, test, digits.CLASSES)


def _fetched(name: str, root: Path) -> Source:
    from torchvision import datasets

    try:
        if name == "stl10":
            train, test, unlabelled = (
                datasets.STL10(str(root), split=split, download=True) for split in ("train", "test", "unlabeled")
            )
            return Source(_stl10(train), _stl10(test), tuple(train.classes), _stl10(unlabelled))
        kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
        train, test = (kind(str(root), train=is_train, download=True) for is_train in (True, False))
    except Exception as error:  # torchvision raises any error of its many sources
        raise DataError(f"dataset {name} is not in {root}, and its download failed: {error}") from error
    return Source(_cifar(train), _cifar(test), tuple(train.classes))


def _cifar(split: Any) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(split.targets)


def _stl10(split: Any) -> tuple[Tensor, Tensor]:
    """Return images, which are channels-first already, and labels; the unlabelled split's labels are -1."""
    return torch.from_numpy(split.data).contiguous(), torch.from_numpy(split.labels).long()


def _resized(images: Tensor, labels: Tensor, size: int | None) -> Split:
    if size is not None and tuple(images.shape[-2:]) != (size, size):
        from torchvision.transforms.v2 import functional

        images = functional.center_crop(functional.resize(images, [size], antialias=True), [size])
    return Split(images, labels, tensor_digest(images, labels))
