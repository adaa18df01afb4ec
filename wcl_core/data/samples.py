"""A picture of some images of each class, small enough to be sent with the description of a dataset.

This module imports neither torch nor torchvision: the import takes longer than the rest, and every worker makes such
pictures when it starts.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from wcl_core.data.image_file import UnreadableError, read_image
from wcl_core.limits import num_threads

if TYPE_CHECKING:
    from torch import Tensor

Pixels = np.ndarray[Any, Any]
MAX_BYTES = 200_000
_MAX_PIXELS = MAX_BYTES - 10_000  # with a palette, a pixel takes one byte at most; the rest is palette and headers
_MAX_ROWS = 100
_LAYOUTS = ((8, 48), (6, 48), (8, 32), (6, 32), (4, 32), (3, 24), (2, 24), (1, 24))  # columns, and the side of a tile


@dataclass(frozen=True)
class Samples:
    """A picture with one row for each of the first classes, in label order; missing images are black tiles.

    Attributes:
        png: of `rows` times `columns` squares of `side` pixels, at most 200,000 bytes.
    """

    png: bytes
    rows: int
    columns: int
    side: int


def samples_of_images(images: Tensor | Pixels, labels: Tensor | Pixels, num_classes: int) -> Samples | None:
    """Return the picture of a split in memory or in a mapped file; only the shown images are read.

    Args:
        images: (N, 3, S, S) uint8, in memory or mapped.
        labels: (N,) int64.
        num_classes: number of classes; the picture shows the first hundred. Without classes there is no picture.
    """
    rows, columns, side = _layout(num_classes, images.shape[-1])
    chosen = _chosen(labels.tolist(), rows, columns)
    tiles = [[_tile(images[place], side) for place in row] for row in chosen]
    return _drawn(tiles, columns, side)


def shown_images(stored: int, labels: Tensor | Pixels, num_classes: int) -> list[int]:
    """Return the places of the images that `samples_of_images` reads; `stored` is their side in pixels."""
    rows, columns, _ = _layout(num_classes, stored)
    return [place for row in _chosen(labels.tolist(), rows, columns) for place in row]


def samples_of_files(root: Path, files: Sequence[tuple[str, int]], num_classes: int) -> Samples | None:
    """Return the picture of a folder; only the shown files are decoded, and an undecodable file is a black tile.

    Args:
        files: path below the folder, and label, of each image.
        num_classes: as for `samples_of_images`.
    """
    rows, columns, side = _layout(num_classes, None)
    chosen = _chosen([label for _, label in files], rows, columns)

    def one(place: int) -> Image.Image | None:
        try:
            return read_image(root / files[place][0], side, is_preview=True)[0]
        except UnreadableError:  # the description's report names such files
            return None

    with ThreadPoolExecutor(num_threads()) as pool:
        tiles = [list(pool.map(one, row)) for row in chosen]
    return _drawn(tiles, columns, side)


def _layout(num_classes: int, stored: int | None) -> tuple[int, int, int]:
    """Return rows, columns and side of the first layout that fits; no tile is larger than a stored image."""
    rows = min(num_classes, _MAX_ROWS)
    sides = ((columns, min(side, stored or side)) for columns, side in _LAYOUTS)
    columns, side = next(each for each in sides if rows * each[0] * each[1] ** 2 <= _MAX_PIXELS)
    return rows, columns, side


def _chosen(labels: Sequence[int], rows: int, columns: int) -> list[list[int]]:
    """Return the indices of each row's images, spread over the class, as neighbours in a folder often look alike."""
    places = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(np.sort(labels), np.arange(rows + 1)).tolist()
    chosen = []
    for first, end in pairwise(bounds):
        count = min(end - first, columns)
        chosen.append([int(places[first + place * (end - first) // count]) for place in range(count)])
    return chosen


def _tile(image: Tensor | Pixels, side: int) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0)))
    return ImageOps.fit(picture, (side, side), Image.Resampling.BILINEAR)


def _drawn(tiles: Sequence[Sequence[Image.Image | None]], columns: int, side: int) -> Samples | None:
    if not tiles:
        return None
    sheet = Image.new("RGB", (columns * side, len(tiles) * side))
    for top, row in enumerate(tiles):
        for left, tile in enumerate(row):
            if tile is not None:
                sheet.paste(tile, (left * side, top * side))
    png = _encoded(sheet)
    if len(png) > MAX_BYTES:
        # The palette of a part of the pixels is nearly as good, and made in a sixth of the time.
        part = sheet.resize((max(1, sheet.width // 4), max(1, sheet.height // 4)), Image.Resampling.NEAREST)
        png = _encoded(sheet.quantize(palette=part.quantize(256), dither=Image.Dither.NONE))
    return Samples(png, len(tiles), columns, side)


def _encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
