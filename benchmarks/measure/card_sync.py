"""Lines of the code that wait for the GPU within a training step, for several specs."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from measure.card_speed import FORMS, MANY_STEPS, prepared, training
from measure.step import spec

STEPS = 10
WCL_OPTIONS: dict[str, dict[str, Any]] = {
    "wcl": {},
    "wcl, lars, blur": {
        "optimizer": {"name": "lars", "learning_rate": 0.3},
        "augmentation": {},
        "weak_augmentation": {},
    },
    "wcl, adamw, micro-batches": {"optimizer": {"name": "adamw", "learning_rate": 1e-3}, "micro_batch_size": 64},
    "wcl, momentum encoder, queue": {"momentum_decay": 0.99, "queue_size": 1024},
    "wcl, small crops": {"multi_crop": {"crops": 2, "image_size": 16}},
    "wcl, mates out of the negatives": {"loss": {"exclude_mates": True, "weak_ramp_fraction": 0.0}},
    "wcl, second level, keys with gradient": {"loss": {"finch_level": 2, "detach_keys": False}},
}


def parts() -> dict[str, Callable[[float], dict[str, Any]]]:
    runs = {name: ("wcl", options) for name, options in WCL_OPTIONS.items()} | {"simclr": ("simclr", {})}
    return {
        f"{name}: {form}": lambda _, method=method, options=options | {"execution": form}: waits(method, options)
        for name, (method, options) in runs.items()
        for form in FORMS
    }


def waits(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the number of waits in ten steps by line; the first step is left out, since it allocates state."""
    run_options = {"backbone": {"name": "tiny", "width": 16}, "batch_size": 256, **MANY_STEPS}
    config = spec(method, **run_options | options)
    with training(config) as (run, step):
        facts = prepared(run)
        step()
        with warnings.catch_warnings(record=True) as met, sync_debug("warn"):
            warnings.simplefilter("always")
            for _ in range(STEPS):
                step()
    lines = Counter(f"{_short(w.filename)}:{w.lineno}" for w in met if "synchroniz" in str(w.message))
    return facts | {"waits_in_ten_steps": sum(lines.values()), "lines": dict(lines)}


@contextmanager
def sync_debug(mode: str) -> Iterator[None]:
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _short(file: str) -> str:
    return "/".join(Path(file).parts[-3:])
