"""Features of images that no run has seen: a weight file and a folder in, a table out.

features.csv        a header, then a row for each image: path, f0, f1, ...
features.parquet    the same columns; it needs pyarrow
features.npy        (N, D) float32; features.txt beside it has the path of each row
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wcl_core.data.decoding import Wish, read_all
from wcl_core.data.images import DataError
from wcl_core.data.layout import Files, list_files, shown
from wcl_core.files import write_bytes
from wcl_core.images.augment import normalised
from wcl_core.methods.heads import normalise
from wcl_core.networks.backbones import FeatureNetwork, VisionBackbone
from wcl_core.networks.weights import load_backbone, trained_size

ENDINGS = (".csv", ".parquet", ".npy")
_BATCH_SIZE = 64

Warn = Callable[[str], None]


class Features:
    """The features of images by a weight file.

    Args:
        file: an exported backbone, a native checkpoint, or a classifier.
        size: side of the images in pixels; by default that of the training.
        warn: called with a message for each image that cannot be read.

    Raises:
        CheckpointError: as `load_backbone`.
        ValueError: an image of this size has no patch.
    """

    def __init__(self, file: Path, size: int | None, warn: Warn) -> None:
        self.network: FeatureNetwork = load_backbone(file)
        self.size = size or trained_size(file)
        self._warn = warn
        if isinstance(self.network, VisionBackbone) and self.size < self.network.patch_size:
            side = self.network.patch_size
            raise ValueError(
                f"--size is {self.size}, but {file} cuts images into patches of {side} pixels; expected {side} at least"
            )

    def of(self, root: Path, paths: Sequence[str]) -> tuple[list[int], Tensor]:
        """Return the places of the images that can be read, and their features: (N, D) float32.

        Args:
            root: the folder of the paths.
            paths: of image files, relative to it.

        Raises:
            DataError: there is no image that can be read.
        """
        places: list[int] = []
        rows: list[Tensor] = []
        images: list[Tensor] = []
        for place, (read, pixels) in enumerate(read_all(root, paths, Wish(self.size))):
            if pixels is None:
                self._warn(f"{shown(paths[place])}: {read.error}")
                continue
            places.append(place)
            images.append(torch.from_numpy(pixels.copy()))
            if len(images) == _BATCH_SIZE:
                rows.append(self._computed(images))
                images = []
        if images:
            rows.append(self._computed(images))
        if not places:
            raise DataError(f"{root}: no image can be read")
        return places, torch.cat(rows)

    def _computed(self, images: list[Tensor]) -> Tensor:
        with torch.inference_mode():
            rows: Tensor = self.network(normalised(torch.stack(images))).float()
        return rows


def write_features(file: Path, folder: Path, out: Path, size: int | None, warn: Warn) -> int:
    """Write the features of all images of a folder or list, and return their number.

    Args:
        file, size, warn: as for `Features`.
        out: `.csv`, `.parquet` or `.npy`; it becomes visible whole.

    Raises:
        ValueError: the ending of `out` is another one, its library is absent, or the file of names beside it would
            replace the list.
        CheckpointError: as `load_backbone`.
        DataError: there is no image that can be read.
    """
    ending = out.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{out}: expected a name that ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    if ending == ".parquet" and find_spec("pyarrow") is None:
        raise ValueError(
            f"{out} needs pyarrow; install it with pip install 'wcl-service[parquet]', or write a .csv file"
        )
    listing = out.with_suffix(".txt")
    if ending == ".npy" and listing.exists() and listing.samefile(folder):
        raise ValueError(f"{out}: its names would replace the list {listing}; expected another name")
    computed = Features(file, size, warn)
    files = listed(folder)
    paths = [path for path, _ in files.unlabelled]
    places, rows = computed.of(files.root, paths)
    features, names = rows.numpy(), [shown(paths[place]) for place in places]
    header = ["path", *(f"f{number}" for number in range(features.shape[1]))]
    if ending == ".csv":
        table = ([name, *(f"{value:.9g}" for value in row)] for name, row in zip(names, features.tolist(), strict=True))
        write_table(out, header, table)
    elif ending == ".parquet":
        write_bytes(out, _parquet(header, names, features))
    else:
        content = io.BytesIO()
        np.save(content, features)
        write_bytes(out, content.getvalue())
        write_bytes(listing, "".join(f"{name}\n" for name in names).encode())
    return len(names)


@dataclass(frozen=True)
class Neighbour:
    """An image of a folder, and the cosine of the angle between its features and those of the image asked about."""

    path: str
    similarity: float


def neighbours(file: Path, image: Path, folder: Path, count: int, size: int | None, warn: Warn) -> list[Neighbour]:
    """Return the images of a folder or list that are most similar to an image, the nearest first, without itself.

    Args:
        file, size, warn: as for `Features`.
        image: an image file, in the folder or elsewhere.
        count: the most that are returned.

    Raises:
        DataError: the image cannot be read, or there is no other one that can.
        CheckpointError: as `load_backbone`.
    """
    if not image.is_file():
        raise DataError(f"{image} is no file; expected an image")
    computed = Features(file, size, warn)
    try:
        _, query = computed.of(image.parent, [image.name])
    except DataError as error:
        raise DataError(f"{image} cannot be read; expected an image") from error
    files = listed(folder)
    itself = os.path.realpath(image)
    paths = [path for path, _ in files.unlabelled if os.path.realpath(files.root / path) != itself]
    if not paths:
        raise DataError(f"{folder} has no image other than {image.name}")
    places, features = computed.of(files.root, paths)
    similarity = (normalise(features) @ normalise(query)[0]).clamp(-1, 1)
    order = similarity.argsort(descending=True, stable=True)[:count].tolist()
    return [Neighbour(shown(paths[places[each]]), float(similarity[each])) for each in order]


def listed(folder: Path, *, has_labels: bool = False) -> Files:
    """Return the images of a folder or list.

    Raises:
        DataError: there is none; the message speaks of no dataset.
    """
    try:
        return list_files("images", folder, has_labels=has_labels)
    except DataError as error:
        raise DataError(str(error).removeprefix("dataset images: ")) from error


def write_table(out: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, which becomes visible whole."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_bytes(out, text.getvalue().encode())


def _parquet(header: Sequence[str], names: Sequence[str], features: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    columns = [pyarrow.array(names), *(pyarrow.array(column) for column in features.T)]
    content = io.BytesIO()
    parquet.write_table(pyarrow.table(columns, names=list(header)), content)
    return content.getvalue()
