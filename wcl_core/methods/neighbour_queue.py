"""The neighbour queue: embeddings of past steps, as further neighbours and keys. [D]

It helps when a batch holds few images of a class.  The idea is MoCo's queue of keys (He et al., CVPR 2020,
https://arxiv.org/abs/1911.05722).  Rows are (u^1, u^2, image index) of the latest batches, float32 and without
gradient; an empty row has the image index -1.  Checkpoints contain the queue.
"""

from __future__ import annotations

import torch
from torch import Tensor


class NeighbourQueue:
    """A ring buffer of the last `size` images.

    Args:
        size: Q, a multiple of the global batch size, so that a batch is written in one piece.
        dim: D of the weak head.
        device: the device of its tensors.

    Attributes:
        u: (2, Q, D) float32 unit rows of both views; zero where empty.
        images: (Q,) int64 index of each image in the train split; -1 where empty.
    """

    def __init__(self, size: int, dim: int, device: torch.device) -> None:
        self.u = torch.zeros(2, size, dim, device=device)
        self.images = torch.full((size,), -1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def push(self, u1: Tensor, u2: Tensor, images: Tensor, step: int | Tensor) -> None:
        """Replace the oldest rows by a batch.

        Args:
            u1: (B, D) unit rows of the global batch, first view, in global order.
            u2: (B, D) unit rows, second view.
            images: (B,) int64 image indices.
            step: number of this step in the run; the place of the oldest rows follows from it.
        """
        start = step * len(images) % len(self.images)
        rows = torch.arange(len(images), device=images.device) + start
        self.u.index_copy_(1, rows, torch.stack((u1, u2)))
        self.images.index_copy_(0, rows, images)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint keeps."""
        return {"u": self.u, "images": self.images}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the rows from a checkpoint."""
        self.u.copy_(state["u"])
        self.images.copy_(state["images"])
