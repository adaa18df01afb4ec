"""Picture sheets: many images as tiles of one picture, so that a page loads one file and shows each tile."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

MAX_TILE = 48


@dataclass(frozen=True)
class Sheet:
    """Tiles row by row, the first image at the top left.

    Attributes:
        png: the file's bytes; places without an image are black.
        tile: side of an image in pixels.
        columns: tiles in a row.
    """

    png: bytes
    tile: int
    columns: int


def sheet(images: Tensor, columns: int | None = None, max_tile: int = MAX_TILE) -> Sheet:
    """Draw images side by side; an image larger than `max_tile` pixels is scaled down to it, with antialiasing.

    Args:
        images: (N, 3, S, S) uint8, N >= 1, on any device.
        columns: images in a row; by default about as many as rows.
        max_tile: largest side of a tile in pixels.
    """
    count, _, side, _ = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    images, tile = images.cpu(), min(side, max_tile)
    if tile < side:
        images = functional.resize(images, [tile, tile], antialias=True)
    empty = torch.zeros(-count % columns, 3, tile, tile, dtype=torch.uint8)
    rows = torch.cat((images, empty)).unflatten(0, (-1, columns))
    picture = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    png = io.BytesIO()
    Image.fromarray(picture.numpy()).save(png, "PNG")
    return Sheet(png.getvalue(), tile, columns)
