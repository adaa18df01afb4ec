"""The views of a batch, and their embeddings by head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Embeddings = dict[str, Tensor]  # of one view: (B, D) float32 rows of each head, by its name


@dataclass(frozen=True)
class Views:
    """Normalised images of one batch: two views, (B, 3, H, W) each, and optionally V small crops, (B, V, 3, S, S)."""

    first: Tensor
    second: Tensor
    crops: Tensor | None = None

    def parts(self) -> list[Tensor]:
        """Return all tensors, in the order of the attributes."""
        return [part for part in (self.first, self.second, self.crops) if part is not None]

    def chunks(self, size: int) -> list[Views]:
        """Return consecutive parts of `size` images each."""
        crops = [None] * (len(self.first) // size) if self.crops is None else self.crops.split(size)
        return [Views(*part) for part in zip(self.first.split(size), self.second.split(size), crops, strict=True)]


@dataclass(frozen=True)
class Embedded:
    """The embeddings of `Views`; all parts have B rows.

    Attributes:
        first: embeddings of the first view.
        second: embeddings of the second view.
        crops: embeddings of all crops of an image in one row, (B, V D); None without crops.
    """

    first: Embeddings
    second: Embeddings
    crops: Embeddings | None = None

    def parts(self) -> list[Tensor]:
        """Return all tensors, in the order that `replaced` expects."""
        return [part for view in self._views() for part in view.values()]

    def map(self, change: Callable[[Tensor], Tensor]) -> Embedded:
        """Return the same structure with `change` applied to each tensor."""
        return self.replaced([change(part) for part in self.parts()])

    def replaced(self, parts: list[Tensor]) -> Embedded:
        """Return the same structure with other tensors, in the order of `parts`."""
        rest = iter(parts)
        return Embedded(*({name: next(rest) for name in view} for view in self._views()))

    @staticmethod
    def joined(chunks: list[Embedded]) -> Embedded:
        """Return the rows of all chunks, in their order."""
        return chunks[0].replaced([torch.cat(rows) for rows in zip(*(chunk.parts() for chunk in chunks), strict=True)])

    def _views(self) -> list[Embeddings]:
        return [self.first, self.second, *([] if self.crops is None else [self.crops])]
