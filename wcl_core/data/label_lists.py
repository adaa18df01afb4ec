"""Fixed lists of train images whose labels may be used, such as the published 1 % of ImageNet.

Each line names one image: by its index in the train split or, for a folder, by its path relative to the dataset or to
`train/`, or by the name of its file if that name is unique. Blank lines and lines that begin with # are ignored, unless
they name an image.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from wcl_core.data.images import DataError, ImageData

if TYPE_CHECKING:  # a description never loads torch
    from torch import Tensor

_Index = np.ndarray[Any, np.dtype[np.int64]]
_MAX_BYTES = 1 << 28


def read_label_list(name: str, path: Path, files: Sequence[str], labels: _Index, classes: Sequence[str]) -> _Index:
    """Return the indices of the train images that a list names: (n,) int64, ascending.

    Args:
        name: name of the list, for messages.
        path: the list.
        files: paths of the train images in their order; empty if the images have none.
        labels: (N,) int64 classes of the train images.
        classes: names of the classes; the list must name an image of each class.

    Raises:
        DataError: the file is absent, too large, empty or no text; a line names no train image or one that an earlier
            line names; or a class has no image.
    """
    labels = np.asarray(labels)
    try:
        if path.exists() and not path.is_file():  # a FIFO would be waited for
            raise DataError(f"list {name}: {path} is no regular file")
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"list {name}: {path} is too large; expected at most {_MAX_BYTES >> 20} MiB")
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"list {name}: {path} cannot be read: {error}") from error
    places = _places(files)
    line_of: dict[int, int] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or (line.startswith("#") and line not in places):
            continue
        place = places.get(line, int(line) if line.isdecimal() and len(line) < 16 else len(labels))
        if place >= len(labels):
            raise DataError(f"list {name}: line {number}: {line[:200]!r} is none of the {len(labels)} train images")
        if place in line_of:
            raise DataError(f"list {name}: line {number} names the image of line {line_of[place]} again")
        line_of[place] = number
    if not line_of:
        raise DataError(f"list {name}: {path} names no image; expected one image a line")
    index = np.array(sorted(line_of), np.int64)
    if len(absent := np.flatnonzero(np.bincount(labels[index], minlength=len(classes)) == 0)):
        raise DataError(
            f"list {name}: {path} has no image of class {classes[int(absent[0])]}; expected one of each class at least"
        )
    return index


def _places(files: Sequence[str]) -> dict[str, int]:
    """Return the index of each train image by each of its unique names."""
    names = [(path, path.removeprefix("train/"), path.rsplit("/", 1)[-1]) for path in files]
    counts = Counter(name for three in names for name in set(three))
    return {name: index for index, three in enumerate(names) for name in three if counts[name] == 1}


def index_digest(index: Tensor | _Index) -> str:
    """Return the sha256 of the indices, ascending as little-endian int64: 64 hex digits."""
    return hashlib.sha256(np.asarray(index).astype("<i8").tobytes()).hexdigest()


def with_label_lists(
    data: ImageData, paths: Mapping[str, Path], digests: Mapping[str, str | None] = MappingProxyType({})
) -> ImageData:
    """Return the data with its lists of train images.

    Args:
        paths: the files by name.
        digests: the announced `index_digest` of each list; one without may have any content.

    Raises:
        DataError: as `read_label_list`, or a list names other images than those announced.
    """
    import torch

    images = (data.train.files, data.train.labels.numpy(), data.classes)
    lists = {name: read_label_list(name, path, *images) for name, path in paths.items()}
    for name, index in lists.items():
        if digests.get(name) not in (None, index_digest(index)):
            raise DataError(f"list {name}: {paths[name]} names other images than at the worker's start; restart it")
    return replace(data, label_lists={name: torch.from_numpy(index) for name, index in lists.items()})
