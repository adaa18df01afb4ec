"""The runs that are stopped: twenty short steps each, with every kind of state that a checkpoint stores.

Each variant logs at another interval, most of which do not divide an epoch, so that runs resume within a log window.
"""

from __future__ import annotations

from typing import Any

STEPS_PER_EPOCH, EPOCHS = 5, 4
STEPS = STEPS_PER_EPOCH * EPOCHS
WARM_UP_STEPS = 7  # beyond the first checkpoint, so that a run resumes within it

_COMMON: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 8},
    "epochs": EPOCHS,
    "batch_size": 240,  # digits' 1,437 images make five batches, and some are left over
    "backbone": {"name": "tiny", "width": 4},
    "heads": {"hidden_dim": 16, "output_dim": 8},
    "optimizer": {"name": "sgd", "learning_rate": 0.06, "scaling": "linear", "weight_decay": 5e-4},
    "warmup_epochs": WARM_UP_STEPS / STEPS_PER_EPOCH,
    "weak_augmentation_epochs": 1,
    "knn_every_epochs": 1,
    "threads": 1,
}
_LARS = {"name": "lars", "learning_rate": 0.3, "scaling": "none"}
_ADAMW = {"name": "adamw", "learning_rate": 1e-3, "scaling": "none", "betas": [0.8, 0.9], "weight_decay": 0.05}

VARIANTS: dict[str, dict[str, Any]] = {
    "WCL": {"log_every_steps": 3, "optimizer": _LARS, "loss": {"weak_ramp_fraction": 0.5}},
    "queue, momentum encoder, multi-crop": {
        "log_every_steps": 7,
        "queue_size": 720,  # three batches of an epoch's five, so that it wraps
        "momentum_decay": 0.9,
        "multi_crop": {"crops": 2, "neighbours": 3, "ramp_fraction": 0.5},
        "loss": {"exclude_mates": True, "weak_ramp_fraction": 0.5},
    },
    "SimCLR": {"log_every_steps": 10, "method": "simclr"},
    "micro-batches, AdamW": {
        "log_every_steps": 1,
        "micro_batch_size": 60,
        "optimizer": _ADAMW,
        "loss": {"finch_level": 2, "decoupled": True, "batch_norm_views": "joint"},
    },
    "two ranks": {"log_every_steps": 4, "processes": 2, "optimizer": _LARS},
    "two ranks, queue, micro-batches": {
        "log_every_steps": 6,
        "processes": 2,
        "queue_size": 480,
        "momentum_decay": 0.9,
        "micro_batch_size": 60,
    },
}


def fields(variant: str) -> dict[str, Any]:
    """Return the spec of a variant, as a client sends it."""
    return _COMMON | VARIANTS[variant]
