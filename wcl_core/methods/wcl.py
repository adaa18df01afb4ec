"""WCL: weakly supervised contrastive learning (Zheng et al., ICCV 2021, https://arxiv.org/abs/2110.04770).

It is SimCLR with a second head, whose nearest neighbours give the images weak labels.  The queue of past embeddings is
an option of this project. [D]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from wcl_core.methods.base import Batch
from wcl_core.methods.neighbour_queue import NeighbourQueue
from wcl_core.methods.objective import INSTANCE, WEAK
from wcl_core.methods.simclr import SimCLR
from wcl_core.methods.views import Embedded


class WCL(SimCLR):
    """The instance loss and the weak-label loss, each on the embeddings of its own head."""

    labels_head = WEAK

    @property
    def heads(self) -> Mapping[str, Callable[[int], nn.Module]]:
        """The builders of the instance head and the weak head."""
        return {INSTANCE: self._head, WEAK: self._head}

    def prepare(self, device: torch.device) -> None:
        """Allocate the queue on the device, if the spec has one."""
        if self._spec.queue_size:
            self._queue = NeighbourQueue(self._spec.queue_size, self._spec.heads.output_dim, device)

    def follow(self, embedded: Embedded, batch: Batch) -> None:
        """Push the batch into the queue."""
        if self._queue is not None:
            self._queue.push(embedded.first[WEAK], embedded.second[WEAK], batch.images, batch.step)

    def state(self) -> dict[str, Tensor]:
        return {} if self._queue is None else {f"queue/{name}": rows for name, rows in self._queue.state().items()}

    def load(self, part: Callable[[str], dict[str, Tensor]]) -> None:
        """Restore the queue from a checkpoint."""
        if self._queue is not None:
            self._queue.load(part("queue/"))
