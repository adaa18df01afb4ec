"""The monitor batch: fixed images of the train split that the monitors measure in eval mode at epoch ends.

A dataset without labels has no train split; its unlabelled images take their place.

The seed chooses the images.  One view is the plain image; the other is one random view, the same at every epoch [D].
Nothing here changes the training state or a global random generator, and no rank waits for another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from wcl_core import artifacts
from wcl_core.config import PretrainSpec
from wcl_core.data import Split, epoch_order
from wcl_core.evaluation import monitors
from wcl_core.images.augment import normalised, random_view
from wcl_core.methods.heads import normalise
from wcl_core.methods.weak_labels import weak_labels
from wcl_core.networks.model import Model
from wcl_core.protocol import (
    ADJUSTED_MUTUAL_INFORMATION,
    COMPONENT_SHARE,
    MONITOR_BATCH_FACTS,
    MONITOR_BATCH_PICTURE,
    MonitorBatchFacts,
)
from wcl_core.reporter import Reporter
from wcl_core.thumbnails import sheet

_MAX_IMAGES = 512
_CHUNK = 128


@dataclass(frozen=True)
class Measurement:
    """Values of the monitors after one epoch.

    Attributes:
        values: all monitors by name: `repr/...` of the pooled features, `embedding/...` of the first head's output, and
            `weak/...` where a head makes weak labels.
        labels: (B,) int64 weak labels of the plain images, where a head makes them.
    """

    values: dict[str, float]
    labels: Tensor | None


class MonitorBatch:
    """The images, on the device.

    Args:
        spec: its seed chooses the images; at most 512, and at most a global batch.
        split: the split that they are from.
        device: of the model.
    """

    def __init__(self, spec: PretrainSpec, split: Split, device: torch.device) -> None:
        index = epoch_order(len(split), spec.seed, -1)[: min(spec.images_per_step, _MAX_IMAGES)]
        self._spec, self._images = spec, split.plain(index).to(device)
        self._index, self._classes = index, split.labels[index]

    def keep(self, reporter: Reporter, output_dir: Path, class_names: Sequence[str]) -> None:
        """Keep the images as two artifacts: a picture, and the facts (`MonitorBatchFacts`) of its tiles.

        The tiles have the order of `Measurement.labels`.
        """
        picture = sheet(self._images)
        facts = MonitorBatchFacts(
            indices=self._index.tolist(),
            classes=[label if label >= 0 else None for label in self._classes.tolist()],
            class_names=list(class_names),
            tile=picture.tile,
            columns=picture.columns,
        )
        artifacts.keep(reporter, output_dir, MONITOR_BATCH_PICTURE, picture.png)
        artifacts.keep(reporter, output_dir, MONITOR_BATCH_FACTS, json.dumps(facts.model_dump()).encode())

    @torch.no_grad()
    def measure(self, model: Model) -> Measurement:
        """Measure the network in eval mode, then restore the mode of each module."""
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            h, h_view = (_pooled(model.backbone, view) for view in self._views())
            rows, rows_of_view = model.heads(h), model.heads(h_view)
        finally:
            for module, training in modes:
                module.training = training
        first = model.head_names[0]
        values = {**_spread("repr", h, h_view), **_spread("embedding", rows[first], rows_of_view[first])}
        if model.labels_head is None:
            return Measurement(values, None)
        labels = weak_labels(rows[model.labels_head])
        return Measurement({**values, **self._weak(labels)}, labels)

    def _views(self) -> tuple[Tensor, Tensor]:
        spec = self._spec
        place = (spec.augmentation, spec.data.image_size)
        view = random_view(self._images, *place, seed=spec.seed, epoch=-1, step=-1, view=0)
        return normalised(self._images), view

    def _weak(self, labels: Tensor) -> dict[str, float]:
        share = {COMPONENT_SHARE: monitors.component_share(labels)}
        if len(self._classes.unique()) < 2:
            return share
        return share | {
            ADJUSTED_MUTUAL_INFORMATION: monitors.adjusted_mutual_information(labels, self._classes),
        }


def _pooled(backbone: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([backbone(chunk).float() for chunk in images.split(_CHUNK)])


def _spread(prefix: str, x: Tensor, view: Tensor) -> dict[str, float]:
    unit = normalise(x)
    return {
        f"{prefix}/alignment": monitors.alignment(unit, normalise(view)),
        f"{prefix}/uniformity": monitors.uniformity(unit),
        f"{prefix}/rankme": monitors.rankme(x),
        f"{prefix}/std": monitors.deviation(unit),
    }
