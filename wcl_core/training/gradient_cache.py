"""Gradient caching in two passes: large batches in the memory of small ones.

    pass 1   chunks ── network, no graph ── embeddings of the whole batch ── graph, labels, loss ── dL/d embeddings
    pass 2   each chunk ── network ── backward with its rows of dL/d embeddings ── sums in the parameters' gradients

The method is GradCache (Gao et al., RepL4NLP 2021, https://arxiv.org/abs/2101.06983).  The loss sees all embeddings at
once, so neighbours, labels and denominators are those of the whole batch.  Without batch norm the gradients equal those
of one pass.  With batch norm they differ, because each chunk is normalised by its own statistics. [D]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wcl_core.methods.views import Embedded, Views
from wcl_core.networks.model import Model


class GradientCache:
    """The embeddings of a batch, computed chunk by chunk, and the backward pass through them.

    Args:
        model: the network under training.
        views: all views of this rank's part of the batch.
        chunk_size: number of images of a chunk; it divides the number of images.
        batch_norm_views: `separate` or `joint`, within a chunk.
        is_bfloat16: whether both passes run under bfloat16 autocast.

    Attributes:
        embedded: leaves of the loss's graph; `backward` reads their gradients.
    """

    def __init__(
        self, model: Model, views: Views, chunk_size: int, batch_norm_views: str, *, is_bfloat16: bool = False
    ) -> None:
        self._model, self._chunks = model, views.chunks(chunk_size)
        self._batch_norm_views, self._is_bfloat16 = batch_norm_views, is_bfloat16
        with torch.no_grad(), _kept_buffers(model):
            parts = [self._embed(chunk) for chunk in self._chunks]
        self.embedded = Embedded.joined(parts).map(lambda x: x.requires_grad_())

    def backward(self) -> None:
        """Add to the parameters' gradients; called after the backward pass of the loss to `embedded`."""
        size = len(self._chunks[0].first)
        for number, chunk in enumerate(self._chunks):
            rows = slice(number * size, (number + 1) * size)
            gradients = [_gradient(part)[rows] for part in self.embedded.parts()]
            torch.autograd.backward(self._embed(chunk).parts(), gradients)

    def _embed(self, chunk: Views) -> Embedded:
        with torch.autocast(chunk.first.device.type, dtype=torch.bfloat16, enabled=self._is_bfloat16):
            return self._model.embed(chunk, self._batch_norm_views)


def _gradient(part: Tensor) -> Tensor:
    return torch.zeros_like(part) if part.grad is None else part.grad


@contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[None]:
    """Restore the buffers at the end, so that only the second pass updates running statistics."""
    buffers = list(model.buffers())
    before = [buffer.clone() for buffer in buffers]
    yield
    if buffers:
        torch._foreach_copy_(buffers, before)
