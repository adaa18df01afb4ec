"""GPU time of a training step by category of its kernels, for eager and compiled steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from measure.card_speed import FORMS, MANY_STEPS, net, prepared, training
from measure.step import GPU_RUNS, spec
from torch.profiler import ProfilerActivity, profile

from wcl_core.config import PretrainSpec

STEPS = 5
# The first category with a word in the kernel's name counts; a compiled kernel often joins several operations.
CATEGORIES = {
    "batch norm": ("batch_norm", "bn_fw", "bn_bw", "batchnorm"),
    "convolutions": ("fprop", "dgrad", "wgrad", "conv", "implicit", "cudnn"),
    "matrix products": ("gemm", "cutlass", "nvjet", "splitk", "gemv"),
    "optimiser": ("multi_tensor",),
    "pooling": ("pool",),
    "copies": ("memcpy", "memset", "copy"),
    "sums and sorts": ("reduce", "sort", "scan", "softmax", "argmax"),
    "element-wise": ("elementwise", "vectorized", "index", "gather", "scatter", "cat"),
}


def parts() -> dict[str, Callable[[float], dict[str, Any]]]:
    measures: dict[str, Callable[[float], dict[str, Any]]] = {}
    for changes in GPU_RUNS:
        for form in FORMS:
            config = spec("wcl", **changes, **MANY_STEPS, execution=form)
            measures[f"wcl, {net(changes)}: {form}"] = lambda _, config=config: of_run(config)
    return measures


def of_run(config: PretrainSpec) -> dict[str, Any]:
    with training(config) as (run, step):
        return prepared(run) | by_category(step)


def by_category(step: Callable[[], object]) -> dict[str, Any]:
    """Return kernels and GPU time a step, in all and by category, and the longest kernels."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    times: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    count = 0
    for event in seen.key_averages():
        took = event.self_device_time_total / 1000 / STEPS
        if took > 0:
            times[_category(event.key)] += took
            kernels[event.key[:90]] += took
            count += event.count
    return {
        "kernels": round(count / STEPS),
        "gpu_ms": round(sum(times.values()), 2),
        "categories_ms": {name: round(took, 2) for name, took in times.most_common()},
        "longest_ms": {name: round(took, 2) for name, took in kernels.most_common(12)},
    }


def _category(kernel: str) -> str:
    name = kernel.lower()
    category = next((it for it, words in CATEGORIES.items() if any(word in name for word in words)), "other")
    return f"{category}, compiled" if name.startswith("triton") else category
