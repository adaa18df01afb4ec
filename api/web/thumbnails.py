"""Thumbnails: each is a window onto one picture that holds all images."""

from __future__ import annotations

from dataclasses import dataclass

NUM_COLOURS = 10  # as in the style sheet; further classes reuse them
_SIDE = 48  # approximate side of a thumbnail in pixels; rounded to a multiple of the tile


def colour_of(label: int) -> int:
    """Return the number of a class's colour, from 1 on."""
    return label % NUM_COLOURS + 1


@dataclass(frozen=True)
class Thumbnail:
    """An image: its place in the picture, its index in the split, and its class and its file if it has them."""

    place: int
    index: int | None
    label: int | None
    class_name: str | None
    file: str | None = None

    @property
    def name(self) -> str:
        """The text alternative."""
        shown = f"Image {self.place if self.index is None else self.index}"
        return shown if self.class_name is None else f"{shown}, class {self.class_name}"

    @property
    def colour(self) -> int:
        """The number of the class's colour; 0 without a class."""
        return 0 if self.label is None else colour_of(self.label)


@dataclass(frozen=True)
class Sheet:
    """The picture that holds all images."""

    address: str
    tile: int
    columns: int
    num_images: int

    @property
    def width(self) -> int:
        return self.columns * self.tile

    @property
    def height(self) -> int:
        return -(-self.num_images // self.columns) * self.tile

    @property
    def side(self) -> int:
        """The side of a thumbnail on the page."""
        return self.tile * max(1, round(_SIDE / self.tile))

    @property
    def is_smooth(self) -> bool:
        """Whether enlarged images are interpolated; the pixels of tiny images stay visible."""
        return self.tile >= 24

    def window(self, place: int) -> str:
        """Return the `viewBox` of an image, half a pixel smaller if interpolation would show its neighbours."""
        edge = 0.5 if self.is_smooth else 0
        left, top = place % self.columns * self.tile + edge, place // self.columns * self.tile + edge
        return f"{left} {top} {self.tile - 2 * edge} {self.tile - 2 * edge}"
