"""What the steps between two logs say, kept on the device and read from it once."""

from __future__ import annotations

import torch
from torch import Tensor

from wcl_core.methods.weak_labels import pair_precision, pair_precision_chance, view_agreement
from wcl_core.protocol import COMPONENTS, PAIR_PRECISION, PAIR_PRECISION_CHANCE, VIEW_AGREEMENT


class Window:
    """Sums of scalars since the last log, on the device: adding never waits for it."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, values: Tensor) -> None:
        """Add one step's (K,) scalars."""
        self._sum = values.double() if self._sum is None else self._sum + values
        self._count += 1

    def means(self) -> list[float]:
        """The means, read from the device; the window starts afresh."""
        assert self._sum is not None
        means: list[float] = (self._sum / self._count).tolist()
        self._sum, self._count = None, 0
        return means


def weak_label_metrics(y1: Tensor, y2: Tensor, classes: Tensor | None) -> dict[str, float]:
    """Cheap signs of how good the weak labels of a batch are, read from the device at once.

    Args:
        y1, y2: (B,) int64 weak labels by each view.
        classes: (B,) int64 true classes, where they are known.
    """
    values = {
        COMPONENTS: torch.tensor(float(len(y1.unique())), dtype=torch.float64, device=y1.device),
        VIEW_AGREEMENT: view_agreement(y1, y2),
    }
    if classes is not None:
        values[PAIR_PRECISION] = (pair_precision(y1, classes) + pair_precision(y2, classes)) / 2
        values[PAIR_PRECISION_CHANCE] = pair_precision_chance(classes)
    return dict(zip(values, torch.stack(tuple(values.values())).tolist(), strict=True))
