"""Published values, shown as references beside measured values, each with its source.

[P] is the WCL paper (Zheng et al., ICCV 2021), [C] its released code; other sources are named.  A dataset must have
exactly the registered name: `cifar10-jpeg` does not match, since its images were encoded again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """A published value in 0..1; `share` is the share of labels that were used, None for all of them."""

    value: float
    mark: str
    setup: str
    note: str = ""
    share: float | None = None


_IMAGENET = ("imagenet", "imagenet-1k", "imagenet1k")
_LINEAR = tuple(
    Reference(value, mark, f"WCL, ResNet-50, batch 4096, {epochs} epochs", "best epoch")
    for epochs, mark, value in (
        (100, "[P]", 0.681),
        (100, "[C]", 0.685),
        (200, "[P]", 0.703),
        (200, "[C]", 0.705),
        (800, "[P]", 0.722),
    )
)
_UNKNOWN = "checkpoint, crops and split unknown"
_SEMI_SUPERVISED = (
    Reference(0.65, "[P]", "WCL, ResNet-50, 1% of the labels", _UNKNOWN, share=0.01),
    Reference(0.72, "[P]", "WCL, ResNet-50, 10% of the labels", _UNKNOWN, share=0.1),
)
_ONLINE = "online linear classifier"
_CIFAR10_LINEAR = (
    Reference(0.907, "solo-learn", "SimCLR, ResNet-18, 1000 epochs", _ONLINE),
    Reference(0.919, "solo-learn", "NNCLR, ResNet-18, 1000 epochs", _ONLINE),
    Reference(0.926, "solo-learn", "BYOL, ResNet-18, 1000 epochs", _ONLINE),
)
_CIFAR10_KNN = (
    Reference(0.848, "lightly", "SimCLR, ResNet-18, batch 512, 200 epochs", "best epoch"),
    Reference(0.879, "lightly", "SimCLR, ResNet-18, batch 512, 800 epochs", "best epoch"),
)


_TABLE = {
    **{(name, "linear_sgd"): _LINEAR for name in _IMAGENET},
    **{(name, "semi_supervised"): _SEMI_SUPERVISED for name in _IMAGENET},
    ("cifar10", "linear_sgd"): _CIFAR10_LINEAR,
    ("cifar10", "knn_wide"): _CIFAR10_KNN,
}


def references(dataset: str, protocol: str, metric: str, share: float | None = None) -> list[Reference]:
    """Return the published values of a dataset and protocol; only top-1 accuracy has any.

    Args:
        share: of labels used, if not all.
    """
    if metric not in ("top1", "top1_selected_on_test"):
        return []
    return [reference for reference in _TABLE.get((dataset, protocol), ()) if reference.share == share]
