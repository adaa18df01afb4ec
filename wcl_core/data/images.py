"""The types of a loaded dataset: splits of uint8 images, and their description."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from wcl_core.data.kinds import DatasetKind
from wcl_core.data.samples import Samples
from wcl_core.limits import memory_bytes
from wcl_core.protocol import DatasetReport

if TYPE_CHECKING:  # a description of a folder never loads torch
    from torch import Tensor

    from wcl_core.data.cache import HeldFile

MEMORY_SHARE = 0.5  # of this machine's memory that decoded images may take
_HASHED_ROWS = 4096  # a mapped file is read through in pieces, never whole


class DataError(ValueError):
    """The data is absent, empty or damaged; the message names the dataset and the reason."""


def content_changed(name: str) -> DataError:
    """Return the error of a job whose version of a dataset is neither at its place nor in the cache."""
    return DataError(
        f"dataset {name}: its content has changed since the job was submitted, and the cache does not hold the version "
        "of the job. The worker reads the dataset again; once `wcl dataset list` calls it ready, `wcl clone` starts "
        "the job on the new version"
    )


@dataclass(frozen=True)
class Split:
    """One split, in memory or mapped from a packed file.

    Attributes:
        images: (N, 3, H, W) uint8; read-only if mapped.
        labels: (N,) int64 class indices, used by evaluation and monitors only; -1 for an image without a label.
        digest: sha256 of labels and decoded pixels, 64 hex digits.
        is_mapped: whether the pixels stay in their file and are read on use.
        files: the path of each image below its folder; empty if the images come from no folder.
        side: side of plain images in pixels, if larger images are stored for the random views.
        held: the file of the cache that the images are in.
    """

    images: Tensor
    labels: Tensor
    digest: str
    is_mapped: bool = False
    files: tuple[str, ...] = ()
    side: int | None = None
    held: HeldFile | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def plain(self, rows: slice | Tensor) -> Tensor:
        """Return images without augmentation, scaled down to `side` if larger ones are stored: (n, 3, S, S) uint8."""
        images = self.images[rows]
        if self.side is None:
            return images
        from torchvision.transforms.v2 import functional

        scaled: Tensor = functional.resize(images, [self.side], antialias=True)
        return scaled


@dataclass(frozen=True)
class ImageData:
    """A dataset: its splits, class names in label order, and the digest of its source.

    Attributes:
        train, test: the labelled splits; empty in a dataset without labels.
        unlabelled: further images without labels; pretraining uses them instead of `train`.
        label_lists: fixed lists of train images by name, (n,) int64 indices each; see `label_lists`.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    digest: str
    unlabelled: Split | None = None
    label_lists: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def has_labels(self) -> bool:
        """Whether accuracies can be measured: there are two classes at least."""
        return len(self.classes) > 1

    @property
    def shown(self) -> Split:
        """The split that the monitor batch is from: train, or unlabelled in a dataset without labels."""
        return self.train if len(self.train) or self.unlabelled is None else self.unlabelled

    @property
    def pretraining(self) -> Split:
        """The split that a backbone is trained on: the unlabelled split if there is one, else the train split."""
        return self.train if self.unlabelled is None else self.unlabelled


@dataclass(frozen=True)
class LabelList:
    """A fixed list of train images: the digest of their indices, and their number."""

    digest: str
    images: int


@dataclass(frozen=True)
class Description:
    """The description of a dataset, made when it is registered.

    Attributes:
        counts: readable images by split.
        class_counts: images of each class in label order, of the labelled splits.
        label_lists: fixed lists of train images.
        image_size: side of the stored images, if views cannot be larger.
        samples: some images of each class as a picture; None if there is no picture.
        report: what is in the image folder; None for a builtin dataset.
    """

    name: str
    kind: DatasetKind
    digest: str
    counts: dict[str, int]
    classes: tuple[str, ...]
    class_counts: dict[str, list[int]]
    label_lists: dict[str, LabelList] = field(default_factory=dict)
    image_size: int | None = None
    samples: Samples | None = None
    report: DatasetReport | None = None


def fits_memory(num_bytes: int) -> bool:
    """Return whether decoded images take at most `MEMORY_SHARE` of the memory that this process may use."""
    return num_bytes <= MEMORY_SHARE * memory_bytes()


def tensor_digest(*tensors: Tensor) -> str:
    """Return the sha256 over shape, dtype and bytes of each tensor: 64 hex digits; mapped ones are read in pieces."""
    return array_digest(*(tensor.numpy() for tensor in tensors))


def array_digest(*arrays: np.ndarray[Any, Any]) -> str:
    """Return what `tensor_digest` returns for equal tensors."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"({array.shape}, torch.{array.dtype})".encode())
        for first in range(0, len(array), _HASHED_ROWS):
            digest.update(np.ascontiguousarray(array[first : first + _HASHED_ROWS]).data)
    return digest.hexdigest()


def split_counts(data: ImageData) -> dict[str, int]:
    """Return the number of images by split; `unlabelled` only if there is one."""
    counts = {"train": len(data.train), "test": len(data.test)}
    return counts if data.unlabelled is None else counts | {"unlabelled": len(data.unlabelled)}


def class_counts(labels: Mapping[str, Iterable[int]], num_classes: int) -> dict[str, list[int]]:
    """Return the number of images of each class, by split."""
    counts = {split: Counter(some) for split, some in labels.items()}
    return {split: [count[label] for label in range(num_classes)] for split, count in counts.items()}
