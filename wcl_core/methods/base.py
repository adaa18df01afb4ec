"""The interface of a method: heads on the features of the backbone, and a loss over their embeddings.

    views ── backbone ── features ── heads ── embeddings of the global batch ── loss ── gradients

Everything else is the same for all methods: ranks, mixed precision, micro-batches, the momentum encoder, resume,
monitors and checkpoints.  `wcl` and `simclr` are built in; others are installed as plugins, see `wcl_core.plugins`.

A method of one head, whose loss pulls the two views of an image together:

    >>> class Pull(Method):
    ...     @property
    ...     def heads(self):
    ...         return {"head": lambda feature_dim: nn.Linear(feature_dim, 2)}
    ...
    ...     def loss(self, embedded, batch, keys):
    ...         distance = (embedded.first["head"] - embedded.second["head"]).square().sum(dim=1)
    ...         return Loss(distance.mean(), {"distance": distance.mean().detach()})
    >>> views = Embedded({"head": torch.zeros(4, 2)}, {"head": torch.ones(4, 2)})
    >>> Pull().loss(views, Batch(torch.arange(4), step=0, total_steps=10), keys=None).total
    tensor(2.)
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
    """The images that a loss is computed for, and the place of the step in the run.

    Attributes:
        images: (B,) int64 index of each image of the global batch in the train split.
        step: number of updates before this one.  For a method that can be captured also a
            scalar int64 tensor on the device.
        total_steps: number of updates up to the first restart of the learning rate, or of the whole run.
    """

    images: Tensor
    step: int | Tensor
    total_steps: int


@dataclass(frozen=True)
class Loss:
    """The loss of a step and its reported parts.

    Attributes:
        total: scalar float32 with its graph.
        terms: detached scalars by name, the same names at every step.  The run reports the mean of each over the steps
            between two logs as `train/<name>`.
        labels: (B,) int64 weak labels of the batch by each view; None for a method without weak labels.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    labels: tuple[Tensor, Tensor] | None = None


class Method(ABC):
    """One method with the options of one spec.

    Every rank computes the loss of the whole global batch, and gradients reach the network through the embeddings
    only.  Trainable parameters therefore belong in a head, which sees each image alone.

    Attributes:
        labels_head: name of the head whose nearest neighbours give weak labels, which monitors read; None without one.
        is_capturable: whether `loss` and `follow` can be part of a CUDA graph: their shapes do not depend on values,
            they read no value back to the host, and they take the step as a tensor.
    """

    labels_head: str | None = None
    is_capturable: bool = False

    @property
    @abstractmethod
    def heads(self) -> Mapping[str, Callable[[int], nn.Module]]:
        """The builder of each head by its name; a builder takes the number of pooled features.

        A head maps (B, feature_dim) floats to (B, D) float32.  Its parameters are drawn from torch's global generator,
        which is seeded for each head.  Monitors call the rows of the first head the embedding.
        """

    @abstractmethod
    def loss(self, embedded: Embedded, batch: Batch, keys: Embedded | None) -> Loss:
        """Return the loss of one global batch.

        Args:
            embedded: embeddings of both views by the trained network, in global order.
            batch: the images and the step.
            keys: embeddings of both views by the momentum encoder, without gradient; None if the spec has none.
        """

    def follow(self, embedded: Embedded, batch: Batch) -> None:  # noqa: B027 (optional)
        """Update the method's state after the optimiser's step, from the detached embeddings (of the keys, if any)."""

    def prepare(self, device: torch.device) -> None:  # noqa: B027 (optional)
        """Allocate the method's state on the device; called once, before the first step and before `load`."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint keeps, by names below the method's own prefix, such as `queue/u`."""
        return {}

    def load(self, part: Callable[[str], dict[str, Tensor]]) -> None:  # noqa: B027 (optional)
        """Restore the state from a checkpoint; `part` returns its tensors below a prefix."""
