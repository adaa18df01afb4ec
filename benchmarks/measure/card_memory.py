"""The memory of a training process on a GPU: the estimate beside the measured peak, and the search for a batch."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wcl_core.config import PretrainSpec, parse_spec
from wcl_core.config.memory import GPU_OVERHEAD_BYTES, advice, process_bytes
from wcl_core.data import ImageData, Split
from wcl_core.distributed import SINGLE
from wcl_core.reporter import MemoryReporter
from wcl_core.training import batch_size
from wcl_core.training.pretrain import pretrain

GIB = 2**30
SHAPES: dict[str, dict[str, Any]] = {
    "resnet18, 32 px, B=2048": {"backbone": {"name": "resnet18", "stem": "small"}, "side": 32, "batch_size": 2048},
    "resnet50, 224 px, B=256": {"backbone": {"name": "resnet50", "stem": "imagenet"}, "side": 224, "batch_size": 256},
    "resnet50, 224 px, B=128, float32": {
        "backbone": {"name": "resnet50", "stem": "imagenet"},
        "side": 224,
        "batch_size": 128,
        "precision": "float32",
    },
    "resnet50, 224 px, B=64, 6 crops": {
        "backbone": {"name": "resnet50", "stem": "imagenet"},
        "side": 224,
        "batch_size": 64,
        "multi_crop": {"crops": 6},
    },
    "wide_resnet50_2, 96 px, B=256": {
        "backbone": {"name": "wide_resnet50_2", "stem": "stride2"},
        "side": 96,
        "batch_size": 256,
    },
    "vit_small, 224 px, B=256": {"backbone": {"name": "vit_small"}, "side": 224, "batch_size": 256},
}


def parts() -> dict[str, Callable[[float], dict[str, Any]]]:
    return {name: lambda _, changes=changes: estimated(spec(**changes)) for name, changes in SHAPES.items()}


def batch_parts() -> dict[str, Callable[[float], dict[str, Any]]]:
    chosen = ("resnet18, 32 px, B=2048", "resnet50, 224 px, B=256", "vit_small, 224 px, B=256")
    searches = {name.rpartition(",")[0]: SHAPES[name] | {"batch_size": "auto"} for name in chosen}
    return {name: lambda _, changes=changes: searched(spec(**changes)) for name, changes in searches.items()} | {
        "too large": lambda _: too_large(spec(**SHAPES["resnet50, 224 px, B=256"] | {"batch_size": 16_384}))
    }


def spec(side: int, **changes: Any) -> PretrainSpec:
    """Return a spec of one epoch."""
    fields = {"data": {"name": "random", "image_size": side}, "epochs": 1, "knn_every_epochs": 0}
    parsed = parse_spec("pretrain", fields | {"monitor_every_epochs": 0} | changes)
    assert isinstance(parsed, PretrainSpec)
    return parsed


def estimated(config: PretrainSpec) -> dict[str, Any]:
    """Return the estimate, the peak of the allocator and of the whole process, and their ratio, without the data."""
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    batch_size._step(config, config.images_per_step, None, device)
    batch_size._step(config, config.images_per_step, None, device)  # the first one has chosen the algorithms
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    free, total = torch.cuda.mem_get_info()
    outside = total - free - torch.cuda.memory_reserved()  # with other processes, if there are any
    needed = process_bytes(config, config.images_per_step, is_gpu=True) or 0
    return {
        "estimate_gib": round(needed / GIB, 2),
        "allocated_gib": round(allocated / GIB, 2),
        "reserved_gib": round(reserved / GIB, 2),
        "outside_gib": round(outside / GIB, 2),
        "estimate_of_allocated": round((needed - GPU_OVERHEAD_BYTES) / allocated, 3),
        "estimate_of_process": round(needed / (reserved + outside), 3),
    }


def searched(config: PretrainSpec) -> dict[str, Any]:
    """Return the time and the result of the search, and the speed of a run with the batch that it found."""
    images = 64 * batch_size.MOST_IMAGES if config.data.image_size <= 32 else 16 * 1024
    start = time.perf_counter()
    size = batch_size.sizes(config, images, torch.device("cuda"), SINGLE, None)["batch_size"]
    seconds = time.perf_counter() - start
    assert size is not None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    reporter = trained(config.model_copy(update={"batch_size": size}), 4 * size)
    total = torch.cuda.mem_get_info()[1]
    return {
        "batch_size": size,
        "search_s": round(seconds, 1),
        "reserved_of_device": round(torch.cuda.max_memory_reserved() / total, 3),
        "steps": reporter.of("progress")[-1]["step"],
    }


def too_large(config: PretrainSpec) -> dict[str, Any]:
    """Return the advice for a batch that does not fit, and whether the batch that it names fits."""
    advised = advice(config, torch.cuda.mem_get_info()[1], is_gpu=True) or ""
    largest = int(advised.rpartition(" ")[2])
    torch.cuda.empty_cache()
    reporter = trained(config.model_copy(update={"batch_size": largest}), 2 * largest)
    return {"advice": advised, "steps": reporter.of("progress")[-1]["step"]}


def trained(config: PretrainSpec, count: int) -> MemoryReporter:
    """Train one epoch of random images."""
    side = config.data.image_size
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    split = Split(images, torch.arange(count) % 10, "0" * 64)
    data = ImageData("random", split, split, tuple("0123456789"), "0" * 64)
    reporter = MemoryReporter()
    with tempfile.TemporaryDirectory() as folder:
        pretrain(config, reporter, dataset=data, output_dir=Path(folder))
    return reporter
