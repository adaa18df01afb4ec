"""Images of a run's probe on a page: each is a window onto the one picture of them all."""

from __future__ import annotations

from dataclasses import dataclass

NUM_COLOURS = 10  # the style sheet has as many; of more classes some share one
_SIDE = 48  # of a thumbnail on the page, about; a whole number of times its pixels


def colour_of(label: int) -> int:
    """The number of a class's colour, from 1 on."""
    return label % NUM_COLOURS + 1


@dataclass(frozen=True)
class Thumbnail:
    """One image: where it is in the probe and in the train split, and its class as far as that is known."""

    place: int
    index: int | None
    label: int | None
    class_name: str | None

    @property
    def name(self) -> str:
        """In words, for those who do not see it."""
        shown = f"Image {self.place if self.index is None else self.index}"
        return shown if self.class_name is None else f"{shown}, class {self.class_name}"

    @property
    def colour(self) -> int:
        """The number of its class's colour; 0 without a class."""
        return 0 if self.label is None else colour_of(self.label)


@dataclass(frozen=True)
class Sheet:
    """The picture of all images, and the windows onto it."""

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
        """Of a thumbnail on the page."""
        return self.tile * max(1, round(_SIDE / self.tile))

    @property
    def is_smooth(self) -> bool:
        """Whether pixels may blend when they are shown larger; of tiny images each is to be seen."""
        return self.tile >= 24

    def window(self, place: int) -> str:
        """The `viewBox` of one image; where pixels blend, its outermost half pixel would show its neighbours."""
        edge = 0.5 if self.is_smooth else 0
        left, top = place % self.columns * self.tile + edge, place // self.columns * self.tile + edge
        return f"{left} {top} {self.tile - 2 * edge} {self.tile - 2 * edge}"
