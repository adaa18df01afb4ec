"""A picture of some images of each class, small enough to be announced with what a dataset holds.

torchvision stays out of it: importing it takes longer than all the rest, and every worker makes such pictures when it
starts.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

MAX_BYTES = 200_000
_MAX_PIXELS = MAX_BYTES - 10_000  # with a palette a pixel takes one byte at most, beside the palette and a few headers
_MAX_ROWS = 100
_LAYOUTS = ((8, 48), (6, 48), (8, 32), (6, 32), (4, 32), (3, 24), (2, 24), (1, 24))  # columns, and the side of a tile


@dataclass(frozen=True)
class Samples:
    """One row for each of the first classes, in label order; a class of fewer images leaves its last tiles black.

    Attributes:
        png: of `rows` times `columns` squares of `side` pixels, at most 200,000 bytes.
    """

    png: bytes
    rows: int
    columns: int
    side: int


def samples_of_images(images: Tensor, labels: Tensor, num_classes: int) -> Samples | None:
    """From decoded images, of which only those that are shown are read.

    Args:
        images: (N, 3, S, S) uint8, in memory or mapped.
        labels: (N,) int64.
        num_classes: those above the first hundred are left out; without any there is no picture.
    """
    rows, columns, side = _layout(num_classes, images.shape[-1])
    chosen = _chosen(labels, rows, columns)
    tiles = [[_tile(_picture(images[place]), side) for place in row] for row in chosen]
    return _drawn(tiles, columns, side)


def samples_of_files(root: Path, files: Sequence[tuple[str, int]], num_classes: int) -> Samples | None:
    """From image files, of which only those that are shown are decoded; one that cannot be leaves its tile black.

    Args:
        root: their folder.
        files: path below it, and label.
        num_classes: as for `samples_of_images`.
    """
    rows, columns, side = _layout(num_classes, None)
    chosen = _chosen(torch.tensor([label for _, label in files]), rows, columns)

    def one(place: int) -> Image.Image | None:
        try:
            with Image.open(root / files[place][0]) as opened:
                opened.draft("RGB", (2 * side, 2 * side))  # a JPEG of many pixels is decoded to a few at once
                return _tile(opened.convert("RGB"), side)
        except Exception:  # image decoders raise anything on damaged bytes; training names such files
            return None

    with ThreadPoolExecutor() as pool:
        tiles = [list(pool.map(one, row)) for row in chosen]
    return _drawn(tiles, columns, side)


def _layout(num_classes: int, stored: int | None) -> tuple[int, int, int]:
    """Rows, columns and side: the first layout that fits, no tile larger than what is stored."""
    rows = min(num_classes, _MAX_ROWS)
    sides = ((columns, min(side, stored or side)) for columns, side in _LAYOUTS)
    columns, side = next(each for each in sides if rows * each[0] * each[1] ** 2 <= _MAX_PIXELS)
    return rows, columns, side


def _chosen(labels: Tensor, rows: int, columns: int) -> list[list[int]]:
    """Places of the images of each row, spread evenly over the class, since neighbours in a folder often look alike."""
    ordered, places = labels.sort(stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(rows + 1)).tolist()
    found = []
    for first, end in pairwise(bounds):
        count = min(end - first, columns)
        found.append([int(places[first + place * (end - first) // count]) for place in range(count)])
    return found


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _tile(image: Image.Image, side: int) -> Image.Image:
    return ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)


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
        png = _encoded(sheet.quantize(256))
    return Samples(png, len(tiles), columns, side)


def _encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
