"""Whole training steps, views included: SimCLR against lightly's, WCL against our SimCLR, and images/s on a GPU.

Ours is the training loop itself, which reports its rate over the last steps of a short run.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from measure.rounds import Row, faster, interleaved, share

from wcl_core.config import PretrainSpec, parse_spec
from wcl_core.data import ImageData, Split
from wcl_core.protocol import IMAGES_PER_SECOND, MetricsRecord, Record
from wcl_core.reporter import MemoryReporter
from wcl_core.training.pretrain import pretrain


@dataclass(frozen=True)
class Net:
    """A network that is trained on a CPU, its batch size and number of steps; a log comes after each half of them."""

    name: str
    backbone: dict[str, Any]
    batch_size: int
    steps: int


NETS = (
    Net("tiny net", {"name": "tiny", "stem": "stride2", "width": 32}, 128, 20),
    Net("ResNet-18", {"name": "resnet18", "stem": "imagenet"}, 256, 4),  # lightly's example: this net, this batch
)
PEER = Path(__file__).with_name("lightly_peer.py")
GPU_RUNS: tuple[dict[str, Any], ...] = (
    {"backbone": {"name": "resnet18"}, "batch_size": 512, "side": 32},
    {"backbone": {"name": "resnet50", "stem": "imagenet"}, "batch_size": 256, "side": 224},
)


def spec(method: str, side: int = 32, **changes: Any) -> PretrainSpec:
    """Return a spec like lightly's example: SGD, no blur; its head has two layers, ours three."""
    augmentation = {"scale_min": 0.08, "blur_probability": 0.0}
    parsed = parse_spec(
        "pretrain",
        {
            "method": method,
            "data": {"name": "random", "image_size": side},
            "epochs": 2,
            "heads": {"hidden_dim": 512, "output_dim": 128},
            "optimizer": {"name": "sgd", "learning_rate": 0.06, "scaling": "none", "weight_decay": 5e-4},
            "warmup_epochs": 0,
            "weak_augmentation_epochs": 0,
            "augmentation": augmentation,
            "weak_augmentation": augmentation,
            "checkpoints": {"every_epochs": 2},
            "knn_every_epochs": 0,
            **changes,
        },
    )
    assert isinstance(parsed, PretrainSpec)
    return parsed


class Stopwatch(MemoryReporter):
    """A reporter that keeps the CPU time of the process at each log with a rate."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu: list[float] = []

    def emit(self, record: Record) -> None:
        super().emit(record)
        if isinstance(record, MetricsRecord) and IMAGES_PER_SECOND in record.values:
            self.cpu.append(time.process_time())


def seconds_per_image(config: PretrainSpec, steps: int) -> float:
    """Return the time between the last two logs of a run, per image."""
    rates = [record["values"].get(IMAGES_PER_SECOND) for record in _run(config, steps).of("metrics")]
    return 1 / float([rate for rate in rates if rate is not None][-1])


def cpu_seconds_per_image(config: PretrainSpec, steps: int) -> float:
    """Return the CPU time between the last two logs, per image; valid on a busy machine too."""
    *_, start, end = _run(config, steps).cpu
    assert config.log_every_steps < steps // config.epochs, "an epoch must not end between the logs"
    return (end - start) / (config.log_every_steps * config.images_per_step)


def _run(config: PretrainSpec, steps: int) -> Stopwatch:
    side, count = config.data.image_size, config.images_per_step * steps // config.epochs
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    split = Split(images, torch.arange(count) % 10, "0" * 64)
    data = ImageData("random", split, split, tuple("0123456789"), "0" * 64)
    reporter = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        pretrain(config, reporter, dataset=data, output_dir=Path(folder))
    return reporter


class Lightly:
    """lightly's example in another process, possibly of another environment; it measures a round on request."""

    def __init__(self, python: str, net: Net, threads: int) -> None:
        settings = {"backbone": net.backbone, "batch_size": net.batch_size, "steps": net.steps, "threads": threads}
        command = [python, str(PEER), json.dumps(settings)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )

    def seconds_per_image(self) -> float:
        seconds: float = json.loads(self._request("go"))
        return seconds

    def close(self) -> None:
        self._pipe(self._process.stdin).close()
        self._process.wait()

    def _request(self, word: str) -> str:
        stdin = self._pipe(self._process.stdin)
        stdin.write(word + "\n")
        stdin.flush()
        return self._pipe(self._process.stdout).readline()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def rows(rounds: int, threads: int, lightly_python: str | None, skipped: list[str]) -> list[Row]:
    """Return the rows; ours and lightly use `threads` threads, lightly also as many loaders (none for 1 thread)."""
    if lightly_python is None and importlib.util.find_spec("lightly"):
        lightly_python = sys.executable
    if lightly_python is None:
        skipped.append("SimCLR step against lightly: it is not installed; set --lightly-python")
    return [row for net in NETS for row in _rows(net, rounds, threads, lightly_python)]


def _rows(net: Net, rounds: int, threads: int, lightly_python: str | None) -> list[Row]:
    def config(method: str, threads: int) -> PretrainSpec:
        run = {"backbone": net.backbone, "batch_size": net.batch_size, "threads": threads}
        return spec(method, **run, log_every_steps=net.steps // 2)

    def ours(method: str) -> Callable[[], float]:
        return lambda: seconds_per_image(config(method, threads), net.steps)

    def ours_cpu(method: str) -> Callable[[], float]:
        return lambda: cpu_seconds_per_image(config(method, 1), 2 * net.steps)

    on = f"per image, {net.name}, {threads} threads" if threads > 1 else f"per image, {net.name}, 1 thread"
    times = interleaved(ours("wcl"), ours("simclr"), rounds)
    table_rows = [share(f"whole WCL step, {on}", "our SimCLR step", *times, 1.05)]
    times = interleaved(ours_cpu("wcl"), ours_cpu("simclr"), rounds)
    table_rows.append(share(f"whole WCL step, CPU time per image, {net.name}", "our SimCLR step", *times, 1.05))
    if lightly_python is None:
        return table_rows
    peer = Lightly(lightly_python, net, threads)
    try:
        times = interleaved(ours("simclr"), peer.seconds_per_image, rounds)
    finally:
        peer.close()
    return [*table_rows, faster(f"whole SimCLR step, {on}", "lightly's example", *times, 1.0)]


def gpu_rates(skipped: list[str]) -> list[Row]:
    """Return the images per second of WCL with two views in bfloat16; there is no peer."""
    if not torch.cuda.is_available():
        skipped.append("CUDA throughput: no GPU")
        return []
    table_rows = []
    for changes in GPU_RUNS:
        config = spec("wcl", **changes, log_every_steps=20)
        rate = 1 / seconds_per_image(config, steps=40)
        name = f"WCL, {changes['backbone']['name']} at {changes['side']} px, batch {changes['batch_size']}"
        table_rows.append(Row(name, "none", rate, rate, "images/s", 1.0, 1.0, 1.0, "none", is_met=True))
    return table_rows
