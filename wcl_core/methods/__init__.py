"""The methods of self-supervised learning, and the functions that they share.

    base ── the interface             wcl, simclr ── the built-in methods          heads ── projection heads
    objective ── the whole loss of a step, from       losses ── instance loss and weak-label loss
                                                      weak_labels ── neighbours, components, their quality
                                                      multicrop ── loss of the small crops
                                                      neighbour_queue ── embeddings of past steps
    log_sum_exp, key_masks ── losses without a mask of all pairs                   views ── the views of a batch

Marks in the docstrings name the source of a definition:

    [P]  the paper: Zheng et al., "Weakly Supervised Contrastive Learning", ICCV 2021, https://arxiv.org/abs/2110.04770
    [C]  the authors' released code
    [D]  defined by this project; docs/method.md gives the reason

The letters: B images in the global batch, D dimensions of an embedding, K keys, Q rows of the queue, V small crops of
an image; z is an embedding of the instance head and u one of the weak head.
"""

from __future__ import annotations

from collections.abc import Callable

from wcl_core.config import PretrainSpec, options_of
from wcl_core.methods.base import Method
from wcl_core.methods.simclr import SimCLR
from wcl_core.methods.wcl import WCL
from wcl_core.plugins import PluginError

_BUILTIN: dict[str, Callable[[PretrainSpec], Method]] = {"wcl": WCL, "simclr": SimCLR}


def build_method(spec: PretrainSpec) -> Method:
    """Return the method that a spec names, built-in or installed as a plugin.

    Raises:
        PluginError: when the plugin is not installed, or does not build a valid `Method`.
    """
    if spec.method in _BUILTIN:
        return _BUILTIN[spec.method](spec)
    method = options_of(spec.method).model_validate(spec.method_options).build(spec)
    if not isinstance(method, Method):
        raise PluginError(
            f"plugin {spec.method} of wcl.methods: build() returned {type(method).__name__}, "
            "expected a wcl_core.methods.base.Method"
        )
    names = tuple(method.heads)
    if not names or "backbone" in names or not all(name.isidentifier() for name in names):
        raise PluginError(
            f"plugin {spec.method} of wcl.methods: heads are {names}, "
            "expected one or more Python identifiers other than 'backbone'"
        )
    return method
