"""Fixed lists of train images whose labels may be used, such as the published 1 % of ImageNet.

One image a line: its index in the train split, or for a folder its path relative to the dataset or to `train/`, or the
name of its file where no other train image has it.  Blank lines and lines that begin with # say nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from wcl_core.data.images import DataError, ImageData

_MAX_BYTES = 1 << 28


def read_label_list(name: str, path: Path, files: Sequence[str], labels: Tensor, classes: Sequence[str]) -> Tensor:
    """The train images that a list names: (n,) int64, ascending.

    Args:
        name: of the list, for messages.
        path: the list.
        files: paths of the train images in their order; empty where they have none.
        labels: (N,) int64 classes of the train images.
        classes: their names; the list has to hold an image of each.

    Raises:
        DataError: the file is absent, too large, empty or no text, a line names no train image or one named before, or
            a class is missing.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"list {name}: {path} is larger than {_MAX_BYTES >> 20} MiB")
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"list {name}: {path} cannot be read: {error}") from error
    known = _places(files)
    line_of: dict[int, int] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        place = known.get(line, int(line) if line.isdecimal() and len(line) < 16 else len(labels))
        if place >= len(labels):
            raise DataError(f"list {name}: line {number}: {line[:200]!r} is none of the {len(labels)} train images")
        if place in line_of:
            raise DataError(f"list {name}: line {number} names the image of line {line_of[place]} again")
        line_of[place] = number
    if not line_of:
        raise DataError(f"list {name}: {path} names no image")
    index = torch.tensor(sorted(line_of))
    if len(absent := labels[index].bincount(minlength=len(classes)).eq(0).nonzero().flatten()):
        raise DataError(f"list {name}: {path} has no image of class {classes[int(absent[0])]}")
    return index


def _places(files: Sequence[str]) -> dict[str, int]:
    """Each train image by every name that means it alone."""
    names = [(path, path.removeprefix("train/"), path.rsplit("/", 1)[-1]) for path in files]
    seen = Counter(name for three in names for name in set(three))
    return {name: index for index, three in enumerate(names) for name in three if seen[name] == 1}


def index_digest(index: Tensor) -> str:
    """sha256 of the indices, ascending as int64 little-endian: 64 hex digits."""
    return hashlib.sha256(index.numpy().astype("<i8").tobytes()).hexdigest()


def with_label_lists(data: ImageData, paths: Mapping[str, Path]) -> ImageData:
    """The same images with their lists read.

    Raises:
        DataError: as `read_label_list`.
    """
    images = (data.train.files, data.train.labels, data.classes)
    return replace(data, label_lists={name: read_label_list(name, path, *images) for name, path in paths.items()})
