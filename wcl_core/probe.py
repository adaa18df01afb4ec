"""A fixed batch of train images, looked at in eval mode at epoch ends: what the monitors say of the network.

The images are chosen by the seed, one view is the plain image and the other one random view that is the same at every
epoch [D].  Nothing here touches the training state or a global random generator, and no rank has to wait for another.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wcl_core.augment import normalised, random_view
from wcl_core.config import PretrainSpec
from wcl_core.data import Split, epoch_order
from wcl_core.evaluate import monitors
from wcl_core.heads import normalise
from wcl_core.model import Model
from wcl_core.weak_labels import weak_labels

_MAX_IMAGES = 512
_CHUNK = 128


class Probe:
    """The batch, on the device.

    Args:
        spec: its seed chooses the images; at most 512 of them, at most a global batch.
        train: the train split.
        device: of the model.
    """

    def __init__(self, spec: PretrainSpec, train: Split, device: torch.device) -> None:
        index = epoch_order(len(train), spec.seed, -1)[: min(spec.batch_size, _MAX_IMAGES)]
        self._spec, self._images = spec, train.plain(index).to(device)
        self._classes = train.labels[index]

    @torch.no_grad()
    def measure(self, model: Model) -> dict[str, float]:
        """All monitors by name: `repr/...` of the pooled features, `embedding/...` of the first head's output.

        `weak/...` needs a head that makes weak labels. The model's modes are put back.
        """
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
        return values if model.labels_head is None else {**values, **self._weak(rows[model.labels_head])}

    def _views(self) -> tuple[Tensor, Tensor]:
        spec = self._spec
        place = (spec.augmentation, spec.data.image_size)
        view = random_view(self._images, *place, seed=spec.seed, epoch=-1, step=-1, view=0)
        return normalised(self._images), view

    def _weak(self, u: Tensor) -> dict[str, float]:
        labels = weak_labels(u)
        return {
            "weak/component_share": monitors.component_share(labels),
            "weak/ami": monitors.adjusted_mutual_information(labels, self._classes),
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
