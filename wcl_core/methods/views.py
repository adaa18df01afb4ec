"""The views of a batch and their embeddings, by head; the rows of a batch stay together whatever is done to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Embeddings = dict[str, Tensor]  # of one view: the rows (B, D) of each head by its name, float32


@dataclass(frozen=True)
class Views:
    """Normalised images of one batch: two views (B, 3, H, W) and perhaps V small crops (B, V, 3, S, S) of each."""

    first: Tensor
    second: Tensor
    crops: Tensor | None = None

    def chunks(self, size: int) -> list[Views]:
        """Consecutive parts of `size` images each."""
        crops = [None] * (len(self.first) // size) if self.crops is None else self.crops.split(size)
        return [Views(*part) for part in zip(self.first.split(size), self.second.split(size), crops, strict=True)]


@dataclass(frozen=True)
class Embedded:
    """The embeddings of `Views`: both views and, flat in each row so that all parts have B rows, the crops.

    Attributes:
        first: the first view's.
        second: the second view's.
        crops: rows of shape (B, V D); None without crops.
    """

    first: Embeddings
    second: Embeddings
    crops: Embeddings | None = None

    def parts(self) -> list[Tensor]:
        """Every tensor there is, in an order that `map` keeps."""
        return [part for view in self._views() for part in view.values()]

    def map(self, change: Callable[[Tensor], Tensor]) -> Embedded:
        """Each part changed alike."""
        return self.replaced([change(part) for part in self.parts()])

    def replaced(self, parts: list[Tensor]) -> Embedded:
        """The same structure with other tensors in the order of `parts`."""
        rest = iter(parts)
        return Embedded(*({name: next(rest) for name in view} for view in self._views()))

    @staticmethod
    def joined(chunks: list[Embedded]) -> Embedded:
        """The rows of all chunks, in their order."""
        return chunks[0].replaced([torch.cat(rows) for rows in zip(*(chunk.parts() for chunk in chunks), strict=True)])

    def _views(self) -> list[Embeddings]:
        return [self.first, self.second, *([] if self.crops is None else [self.crops])]
