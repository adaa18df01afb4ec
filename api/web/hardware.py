"""What the page of a run says of its machine: which curves there are, and why others are not."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from api.web.job import Run

_SPEED = "train/images_per_second"


@dataclass(frozen=True)
class Hardware:
    """`names` are the metrics that were reported, `missing` sentences about those that were not."""

    names: list[str]
    missing: list[str]


def is_hardware(name: str) -> bool:
    """Whether a metric tells of the machine and not of the training."""
    return name == _SPEED or name.startswith("system/")


def hardware(run: Run) -> Hardware:
    """Of a training run."""
    names = sorted(filter(is_hardware, run.view.metrics))
    if not any(name.startswith("system/") for name in names):
        waits = "Measurements come with the first log." if not run.view.is_over else "It reported no measurements."
        return Hardware(names, [waits])
    return Hardware(names, _missing(names, _device(run), run.job.spec.get("processes", 1)))


def _device(run: Run) -> str:
    """As the newest attempt that has begun named it."""
    told = [attempt.environment for attempt in run.attempts if attempt.environment]
    return str(told[-1].get("device", "")) if told else ""


def _missing(names: Collection[str], device: str, processes: int) -> list[str]:
    found = []
    if device.startswith("cpu"):
        found.append("It trains on the CPU: there is no GPU to measure.")
    elif "system/gpu_percent" not in names:
        found.append("GPU utilisation was not available: it needs NVML's Python library (nvidia-ml-py) on the worker.")
    if "system/process_memory_mib" not in names:
        found.append("Memory of the process was not available: it is read from /proc, which only Linux has.")
    if processes > 1:
        found.append(f"Of its {processes} processes these are the first one's.")
    return found
