"""Self-supervised pretraining and evaluation of image networks, without database, queue or web.

The public names, by topic:

    losses          nt_xent, weak_label_loss, swapped_weak_label_loss
    weak labels     weak_labels, nearest_neighbours, components
    optimiser       LARS, param_groups
    whole runs      pretrain, evaluate
    weights         load_backbone

A name is loaded on its first use, because the service imports `wcl_core.config` and must not load torch by it.  No
module of this package may have a public name: Python would set it as an attribute here and hide the public object.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wcl_core.evaluation.run import evaluate
    from wcl_core.methods.losses import nt_xent, swapped_weak_label_loss, weak_label_loss
    from wcl_core.methods.weak_labels import components, nearest_neighbours, weak_labels
    from wcl_core.networks.weights import load_backbone
    from wcl_core.training.optim import LARS, param_groups
    from wcl_core.training.pretrain import pretrain

__all__ = [
    "LARS",
    "components",
    "evaluate",
    "load_backbone",
    "nearest_neighbours",
    "nt_xent",
    "param_groups",
    "pretrain",
    "swapped_weak_label_loss",
    "weak_label_loss",
    "weak_labels",
]

_MODULES = {
    "evaluation.run": ("evaluate",),
    "methods.losses": ("nt_xent", "swapped_weak_label_loss", "weak_label_loss"),
    "methods.weak_labels": ("components", "nearest_neighbours", "weak_labels"),
    "networks.weights": ("load_backbone",),
    "training.optim": ("LARS", "param_groups"),
    "training.pretrain": ("pretrain",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # type checkers read the imports above, and report a name that does not exist

    def __getattr__(name: str) -> Any:
        """Load a public name on its first use."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
