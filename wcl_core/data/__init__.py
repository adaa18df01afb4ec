"""Images as uint8 tensors: in memory, or mapped from a file that was packed once; which images make which step.

    builtin   scikit-learn's digits, and what torchvision fetches       builtin.py
    folder    a tree of class folders, decoded at each start            folder.py
    packed    such a tree decoded once into one file, mapped            packed.py

Random views are `augment`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from wcl_core.data.builtin import BUILTIN, load_builtin
from wcl_core.data.described import describe_folder_cached
from wcl_core.data.folder import describe_folder, list_files, load_folder
from wcl_core.data.held_out import with_held_out
from wcl_core.data.images import (
    DataError,
    DatasetKind,
    Description,
    ImageData,
    LabelList,
    Split,
    class_counts,
    split_counts,
)
from wcl_core.data.label_lists import index_digest, read_label_list, with_label_lists
from wcl_core.data.order import derived_seed, epoch_batches, epoch_order
from wcl_core.data.packed import describe_packed, load_packed, packed_train_labels
from wcl_core.data.samples import Samples, samples_of_images
from wcl_core.reporter import Reporter

__all__ = [
    "BUILTIN",
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


def kind_of(path: Path | None) -> DatasetKind:
    """What lies at a path: nothing means a builtin, a file is a packed one."""
    if path is None:
        return "builtin"
    return "packed" if path.is_file() or path.suffix == ".wclpack" else "folder"


def load(
    name: str, kind: DatasetKind, path: Path | None, image_size: int, max_corrupt_share: float, reporter: Reporter
) -> ImageData:
    """Bring a dataset to hand.

    Args:
        name: its name; for a builtin one of `BUILTIN`.
        kind: where it comes from.
        path: the folder or the packed file; for a builtin an optional cache folder.
        image_size: side in pixels; every image is scaled so that its shorter side has it, then centre-cropped.  A
            packed file has its size already.
        max_corrupt_share: the largest share of undecodable files that is tolerated.
        reporter: told the name of every undecodable file, up to a limit.

    Raises:
        DataError: absent, empty or damaged data, too many corrupt files, or more than memory holds.
    """
    if kind == "builtin":
        return load_builtin(name, path, image_size)
    if kind == "packed":
        return load_packed(name, _given(name, path, "packed file"), image_size)
    return load_folder(name, _given(name, path, "folder"), image_size, max_corrupt_share, reporter)


def describe(
    name: str,
    kind: DatasetKind,
    path: Path | None,
    cache: Path | None = None,
    lists: Mapping[str, Path] = MappingProxyType({}),
) -> Description:
    """Counts, classes and the digest that `load` will report, decoding no more than the samples of a folder's images.

    Args:
        name: its name.
        kind: where it comes from.
        path: as for `load`.
        cache: a file that keeps a folder's description until anything in the folder changes.
        lists: fixed lists of train images by name.

    Raises:
        DataError: as `load`.
    """
    found = _described(name, kind, path, cache)
    if not lists:
        return found
    files, labels = _train_images(name, kind, path)
    read = {which: read_label_list(which, place, files, labels, found.classes) for which, place in lists.items()}
    described = {which: LabelList(index_digest(index), len(index)) for which, index in read.items()}
    return replace(found, label_lists=described)


def _train_images(name: str, kind: DatasetKind, path: Path | None) -> tuple[Sequence[str], Tensor]:
    """Paths, where there are some, and labels of the train images, in their order."""
    if kind == "packed":
        return (), packed_train_labels(name, _given(name, path, "packed file"))
    if kind == "folder":
        entries = list_files(name, _given(name, path, "folder")).train
        return [file for file, _ in entries], torch.tensor([label for _, label in entries])
    return (), load_builtin(name, path, None).train.labels


def _described(name: str, kind: DatasetKind, path: Path | None, cache: Path | None) -> Description:
    if kind == "packed":
        return describe_packed(name, _given(name, path, "packed file"))
    if kind == "folder":
        folder = _given(name, path, "folder")
        return describe_folder(name, folder) if cache is None else describe_folder_cached(name, folder, cache)
    data = load_builtin(name, path, None)
    counts = class_counts({"train": data.train.labels.tolist(), "test": data.test.labels.tolist()}, len(data.classes))
    samples = samples_of_images(data.train.images, data.train.labels, len(data.classes))
    return Description(name, kind, data.digest, split_counts(data), data.classes, counts, samples=samples)


def _given(name: str, path: Path | None, what: str) -> Path:
    if path is None:
        raise DataError(f"dataset {name}: a {what} is needed")
    return path
