"""The training step on a GPU: the loop as it is, and prototypes of a compiled step and of a step in one CUDA graph."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure.step import GPU_RUNS, spec
from torch import Tensor

from wcl_core.config import PretrainSpec
from wcl_core.data import ImageData, Split
from wcl_core.distributed import SINGLE
from wcl_core.methods.base import Batch, Loss
from wcl_core.methods.views import Views
from wcl_core.reporter import NullReporter
from wcl_core.training.pretrain import _Run

MANY_STEPS = {"epochs": 10_000, "log_every_steps": 100_000}  # no log and no end within a measurement
RATE = 0.06  # a captured step keeps the learning rate that it was captured with
WARM_UP_STEPS = 4
COMPARED_STEPS = 12  # a form's loss is compared after so many steps on the same views


def parts() -> dict[str, Callable[[float], dict[str, Any]]]:
    measures: dict[str, Callable[[float], dict[str, Any]]] = {}
    for changes in GPU_RUNS:
        net = f"{changes['backbone']['name']}, {changes['side']} px, B={changes['batch_size']}"
        for method in ("wcl", "simclr"):
            config = spec(method, **changes, **MANY_STEPS)
            measures[f"{method}, {net}: loop"] = lambda _, config=config: loop(config)
            measures[f"{method}, {net}: graph"] = lambda _, config=config: captured(config, is_compiled=False)
            measures[f"{method}, {net}: compiled graph"] = lambda _, config=config: captured(config, is_compiled=True)
    return measures


@contextmanager
def training(config: PretrainSpec, batches: int = 4) -> Iterator[tuple[_Run, Tensor]]:
    """Yield a run on synthetic images that are in the memory of the GPU, and the index of a batch."""
    side, count = config.data.image_size, config.images_per_step * batches
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    split = Split(images, torch.arange(count) % 10, "0" * 64)
    data = ImageData("random", split, split, tuple("0123456789"), "0" * 64)
    with tempfile.TemporaryDirectory() as folder:
        run = _Run(config, NullReporter(), data, Path(folder), None, SINGLE)
        try:
            yield run, torch.randperm(count, generator=torch.Generator().manual_seed(0))[: config.images_per_step]
        finally:
            run.saver.close()


def loop(config: PretrainSpec) -> dict[str, Any]:
    """Return the times of the loop's own step, views included."""
    torch.cuda.reset_peak_memory_stats()
    with training(config) as (run, index):

        def step() -> None:
            run._train_step(index, 0)

        values = times(step, config.images_per_step) | {"memory_gib": _peak_gib()}
        views = milliseconds(lambda: run.view_maker.views(run.images[index], 0, 0))
        return values | {"views_ms": views}


def captured(config: PretrainSpec, *, is_compiled: bool) -> dict[str, Any]:
    """Return the times of a step in one CUDA graph with static inputs: for given views, and with the loop's views."""
    torch.cuda.reset_peak_memory_stats()
    with training(config) as (run, index):
        start = time.perf_counter()
        form = Captured(run, index, is_compiled=is_compiled)
        torch.cuda.synchronize()
        values: dict[str, Any] = {"preparation_s": round(time.perf_counter() - start, 1)}
        for _ in range(COMPARED_STEPS - WARM_UP_STEPS):
            form.replay()
        values["loss"] = float(form.loss.total)
        values["given_views"] = times(form.replay, config.images_per_step)

        def with_views() -> None:
            form.fill(run.view_maker.views(run.images[index], 0, run.step))
            form.replay()

        values["with_views"] = times(with_views, config.images_per_step)
        values["memory_gib"] = _peak_gib()
    return values | {"eager_loss": _eager_loss(config)}


class Captured:
    """A step of the learner and the optimiser, captured with static views."""

    def __init__(self, run: _Run, index: Tensor, *, is_compiled: bool) -> None:
        self._run = run
        self._batch = Batch(index.to(run.device), 0, 1000)
        self.views = run.view_maker.views(run.images[index], 0, 0)
        self.loss: Loss
        if is_compiled:
            torch._dynamo.reset()
            run.model.backbone.compile(dynamic=False)
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(WARM_UP_STEPS):
                one_step(run, self.views, self._batch)
        torch.cuda.current_stream().wait_stream(side_stream)
        run.optimizer.zero_grad(set_to_none=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.loss = one_step(run, self.views, self._batch)

    def fill(self, views: Views) -> None:
        """Copy other views into the static inputs."""
        self.views.first.copy_(views.first)
        self.views.second.copy_(views.second)

    def replay(self) -> None:
        self._graph.replay()


def one_step(run: _Run, views: Views, batch: Batch) -> Loss:
    """Run the loop's step for given views, without its metrics."""
    run.optimizer.zero_grad(set_to_none=True)
    loss = run.learner.gradients(views, batch)
    for group in run.optimizer.param_groups:
        group["lr"] = RATE
    run.optimizer.step()
    run.learner.follow()
    return loss


def _eager_loss(config: PretrainSpec) -> float:
    with training(config) as (run, index):
        views, batch = run.view_maker.views(run.images[index], 0, 0), Batch(index.to(run.device), 0, 1000)
        for _ in range(COMPARED_STEPS):
            loss = one_step(run, views, batch)
        return float(loss.total)


def times(step: Callable[[], object], batch_size: int, steps: int = 30) -> dict[str, float]:
    """Return ms a step and images/s of steps in a row, and the host's time to issue one step to an idle GPU."""
    per_step = milliseconds(step, steps)
    host = []
    for _ in range(7):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        host.append(1000 * (time.perf_counter() - start))
    torch.cuda.synchronize()
    return {"step_ms": per_step, "images_per_s": round(1000 * batch_size / per_step), "host_ms": round(median(host), 2)}


def milliseconds(work: Callable[[], object], repeats: int = 20, warm_up: int = 5) -> float:
    """Return the mean time of work in a row, until the GPU has ended."""
    for _ in range(warm_up):
        work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return round(1000 * (time.perf_counter() - start) / repeats, 3)


def _peak_gib() -> float:
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)
