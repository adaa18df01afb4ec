"""Loading and description of a dataset of any kind.

Modules that load torch are imported where they are used, because descriptions of folders need none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from wcl_core.data import digits
from wcl_core.data.described import describe_folder_cached
from wcl_core.data.folder import describe_folder, load_folder
from wcl_core.data.images import (
    DataError,
    Description,
    ImageData,
    LabelList,
    class_counts,
    split_counts,
)
from wcl_core.data.kinds import DatasetKind
from wcl_core.data.layout import list_files
from wcl_core.data.samples import samples_of_images
from wcl_core.reporter import Reporter

if TYPE_CHECKING:
    from wcl_core.data.cache import Cache


def load(
    name: str,
    kind: DatasetKind,
    path: Path | None,
    image_size: int,
    max_corrupt_share: float,
    reporter: Reporter,
    *,
    cache: Cache | None = None,
    digest: str | None = None,
    has_labels: bool = True,
) -> ImageData:
    """Load a dataset.

    Args:
        name: its name; for a builtin one of `BUILTIN` or of an installed plugin.
        path: the folder, list of images or packed file; for a builtin an optional cache folder.
        image_size: side in pixels. Each image is scaled until its shorter side has this length, then centre-cropped; a
            packed file has its size already.
        max_corrupt_share: the largest share of undecodable files that is tolerated.
        reporter: receives a warning for each undecodable file, up to a limit, and the progress of decoding a folder.
        cache: keeps the decoded images of a folder, if its digest is given; remembers that a packed file was checked.
        digest: of the content that is expected.
        has_labels: whether a folder or list may name classes.

    Raises:
        DataError: the data is absent, empty or damaged, has too many undecodable files, does not fit into memory, or is
            in no cache and has other content.
    """
    if kind == "builtin":
        from wcl_core.data.builtin import load_builtin

        return load_builtin(name, path, image_size)
    if kind == "packed":
        from wcl_core.data.packed import load_packed

        return load_packed(name, _required(name, path, "packed file"), image_size, cache)
    folder = _required(name, path, "folder")
    return load_folder(name, folder, image_size, max_corrupt_share, reporter, cache, digest, has_labels=has_labels)


def describe(
    name: str,
    kind: DatasetKind,
    path: Path | None,
    cache: Path | None = None,
    lists: Mapping[str, Path] = MappingProxyType({}),
    tell: Callable[[float], None] = lambda _share: None,
    *,
    has_labels: bool = True,
) -> Description:
    """Return the counts, the classes and the digest that `load` will report.

    Every image of a folder is decoded once, so a damaged one is not counted.

    Args:
        name: its name.
        path: as for `load`.
        cache: a file that keeps the description of a folder until anything in the folder changes.
        lists: fixed lists of train images, by name.
        tell: called now and then with the share of a folder's files that are read.
        has_labels: as for `load`.

    Raises:
        DataError: as `load`.
    """
    description = _described(name, kind, path, cache, tell, has_labels)
    if not lists:
        return description
    from wcl_core.data.label_lists import index_digest, read_label_list

    files, labels = _train_images(name, kind, path)
    indices = {
        list_name: read_label_list(list_name, place, files, np.array(labels), description.classes)
        for list_name, place in lists.items()
    }
    label_lists = {list_name: LabelList(index_digest(index), len(index)) for list_name, index in indices.items()}
    return replace(description, label_lists=label_lists)


def _train_images(name: str, kind: DatasetKind, path: Path | None) -> tuple[Sequence[str], Sequence[int]]:
    """Return paths and labels of the train images, in the order of the split; only a folder has paths."""
    if kind == "packed":
        from wcl_core.data.packed import packed_train_labels

        return (), packed_train_labels(name, _required(name, path, "packed file")).tolist()
    if kind == "folder":
        entries = list_files(name, _required(name, path, "folder")).train
        return [file for file, _ in entries], [label for _, label in entries]
    if name == digits.NAME:
        return (), digits.load_digits().train[1].tolist()
    from wcl_core.data.builtin import load_builtin

    return (), load_builtin(name, path, None).train.labels.tolist()


def _described(
    name: str,
    kind: DatasetKind,
    path: Path | None,
    cache: Path | None,
    tell: Callable[[float], None],
    has_labels: bool,
) -> Description:
    if kind == "packed":
        from wcl_core.data.packed import describe_packed

        return describe_packed(name, _required(name, path, "packed file"))
    if kind == "folder":
        folder = _required(name, path, "folder")
        if cache is None:
            return describe_folder(name, folder, tell=tell, has_labels=has_labels)
        return describe_folder_cached(name, folder, cache, tell, has_labels=has_labels)
    if name == digits.NAME:
        return digits.describe_digits()
    from wcl_core.data.builtin import load_builtin

    data = load_builtin(name, path, None)
    counts = class_counts({"train": data.train.labels.tolist(), "test": data.test.labels.tolist()}, len(data.classes))
    samples = samples_of_images(data.train.images, data.train.labels, len(data.classes))
    return Description(name, kind, data.digest, split_counts(data), data.classes, counts, samples=samples)


def _required(name: str, path: Path | None, noun: str) -> Path:
    if path is None:
        raise DataError(f"dataset {name}: expected the path of a {noun}, got none")
    return path
