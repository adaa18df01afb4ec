"""What a method of self-supervised learning is to the rest: heads on the features, and a loss over their embeddings.

    views ── backbone ── features ── heads ── embeddings of the global batch ── loss ── gradients

Everything else is the same for all of them: ranks, mixed precision, micro-batches, the momentum encoder, resume,
monitors and checkpoints.  WCL and SimCLR are in `methods`; others are installed as plugins, see `plugins`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from wcl_core.methods.views import Embedded


@dataclass(frozen=True)
class Batch:
    """Which images a loss is of, and when.

    Attributes:
        images: (B,) int64 index of each image of the global batch in the train split.
        step: updates done before this one.
        total_steps: of the run.
    """

    images: Tensor
    step: int
    total_steps: int


@dataclass(frozen=True)
class Loss:
    """The loss of a step and what is worth telling about it.

    Attributes:
        total: a scalar with its graph, float32.
        terms: detached scalars by name, the same ones at every step; the means over the steps between two logs are
            reported as `train/<name>`.
        labels: weak labels of the batch by each view, (B,) int64; None in a method that has none.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    labels: tuple[Tensor, Tensor] | None = None


class Method(ABC):
    """One method under the options of one spec.

    Every rank computes the loss of the whole global batch, and gradients reach the network through the embeddings
    alone: what is learnt belongs into a head, which sees each image by itself.

    Attributes:
        labels_head: the head whose nearest neighbours make weak labels, if there is one: monitors look at them.
    """

    labels_head: str | None = None

    @property
    @abstractmethod
    def heads(self) -> Mapping[str, Callable[[int], nn.Module]]:
        """What makes each head, by its name, from the number of pooled features.

        A head maps (B, feature_dim) to (B, D) float32, and is drawn from torch's global generator under a seed of its
        own.  The first head's rows are what monitors call the embedding.
        """

    @abstractmethod
    def loss(self, embedded: Embedded, batch: Batch, keys: Embedded | None) -> Loss:
        """The loss of one global batch.

        Args:
            embedded: the trained network's embeddings of both views, in global order.
            batch: which images, and when.
            keys: the momentum encoder's embeddings of both views, without gradient; None where the spec has none.
        """

    def follow(self, embedded: Embedded, batch: Batch) -> None:  # noqa: B027 (optional)
        """After the optimiser's step: bring state up to date from the embeddings (the keys, if any), detached."""

    def prepare(self, device: torch.device) -> None:  # noqa: B027 (optional)
        """Make whatever state there is on the device; called once, before the first step and before `load`."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, by names below one of the method's own, such as `queue/u`."""
        return {}

    def load(self, part: Callable[[str], dict[str, Tensor]]) -> None:  # noqa: B027 (optional)
        """Go on from a checkpoint, whose tensors below a prefix `part` gives."""
