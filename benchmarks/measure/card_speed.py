"""The training step on a GPU, eager and compiled: its speed, and the losses of both."""

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

from wcl_core.config import PretrainSpec
from wcl_core.data import ImageData, Split
from wcl_core.distributed import SINGLE
from wcl_core.reporter import NullReporter
from wcl_core.training.pretrain import _Run

MANY_STEPS = {"epochs": 10_000, "log_every_steps": 100_000}  # no log and no end within a measurement
COMPARED_STEPS = 10
FORMS = ("eager", "compiled")
OTHER_OPTIONS: dict[str, dict[str, Any]] = {
    "lars": {"optimizer": {"name": "lars", "learning_rate": 0.3}},
    "adamw, micro-batches": {"optimizer": {"name": "adamw", "learning_rate": 1e-3}, "micro_batch_size": 128},
    "momentum encoder, queue": {"momentum_decay": 0.99, "queue_size": 2048},
    "small crops, ramps": {"multi_crop": {"crops": 2, "image_size": 16}, "loss": {"weak_ramp_fraction": 0.5}},
}


def parts() -> dict[str, Callable[[float], dict[str, Any]]]:
    measures: dict[str, Callable[[float], dict[str, Any]]] = {}
    for changes in GPU_RUNS:
        for method in ("wcl", "simclr"):
            for form in FORMS:
                config = spec(method, **changes, **MANY_STEPS, execution=form)
                measures[f"{method}, {net(changes)}: {form}"] = lambda _, config=config: speed(config)
    return measures


def comparisons() -> dict[str, Callable[[float], dict[str, Any]]]:
    """Return parts that compare the losses of eager and compiled steps, for several options."""
    small, large = GPU_RUNS
    configs = {net(small): small, net(large): large} | {name: small | more for name, more in OTHER_OPTIONS.items()}
    return {
        f"eager against compiled, {name}": lambda _, changes=changes: compared(spec("wcl", **changes, **MANY_STEPS))
        for name, changes in configs.items()
    }


def net(changes: dict[str, Any]) -> str:
    """Return the name of a run's network."""
    return f"{changes['backbone']['name']}, {changes['side']} px, B={changes['batch_size']}"


@contextmanager
def training(config: PretrainSpec, batches: int = 4) -> Iterator[tuple[_Run, Callable[[], None]]]:
    """Yield a run on synthetic images that are in the memory of the GPU, and a function that takes its next step."""
    side, count = config.data.image_size, config.images_per_step * batches
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.arange(count) % 10, "0" * 64)
    data = ImageData("random", split, split, tuple("0123456789"), "0" * 64)
    with tempfile.TemporaryDirectory() as folder:
        run = _Run(config, NullReporter(), data, Path(folder), None, SINGLE)
        try:
            steps = _steps(run)
            yield run, lambda: next(steps)
        finally:
            run.saver.close()


def _steps(run: _Run) -> Iterator[None]:
    """Take the steps of the training loop, whose view parameters a thread draws one step ahead."""
    parameters = run.view_maker.ahead(range(run.total_steps))
    for epoch in range(run.config.epochs):
        for index, drawn in zip(run._batches(epoch), parameters, strict=False):
            run._train_step(index, drawn)
            yield


def speed(config: PretrainSpec) -> dict[str, Any]:
    """Return the times of the run's own step, of its views alone, and of drawing their parameters on the host."""
    torch.cuda.reset_peak_memory_stats()
    with training(config) as (run, step):
        values = prepared(run) | times(step, config.images_per_step)
        values["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        values["views_ms"] = milliseconds(views_of(run))
        values["draw_ms"] = milliseconds(lambda: run.view_maker.parameters(run.step))
    return values


def views_of(run: _Run) -> Callable[[], object]:
    """Return a function that makes the views of a step as the run's form makes them; in a CUDA graph, if it has one."""
    index = torch.arange(run.config.images_per_step)
    inputs, views = run._inputs(index, run.view_maker.parameters(0)), run.execution._eager.views
    if run.execution.form != "captured":
        return lambda: views(inputs)
    static = inputs.on_device()
    return captured(lambda: views(static)).replay


def captured(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Return the work as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def prepared(run: _Run) -> dict[str, Any]:
    """Compile the run's step if its spec asks for it; return its form, the reason and the time that it took."""
    start = time.perf_counter()
    run.prepare()
    torch.cuda.synchronize()
    seconds = round(time.perf_counter() - start, 1)
    return {"form": run.execution.form, "reason": run.execution.reason, "preparation_s": seconds}


def compared(config: PretrainSpec) -> dict[str, Any]:
    """Return losses and images/s of both forms, and whether two compiled runs end with equal weights."""
    values: dict[str, Any] = {}
    weights = []
    for name, form in (("eager", "eager"), ("compiled", "compiled"), ("compiled again", "compiled")):
        torch._dynamo.reset()
        with training(config.model_copy(update={"execution": form})) as (run, step):
            facts = prepared(run)
            losses = [_loss(run, step) for _ in range(COMPARED_STEPS)]
            weights.append([parameter.detach().clone() for parameter in run.model.parameters()])
            values[name] = facts | {"losses": losses} | times(step, config.images_per_step)
    pairs = zip(values["eager"]["losses"], values["compiled"]["losses"], strict=True)
    values["largest_difference"] = max(abs(one - other) / abs(one) for one, other in pairs)
    values["is_repeatable"] = all(map(torch.equal, weights[1], weights[2]))
    return values


def _loss(run: _Run, step: Callable[[], None]) -> float:
    """Return the loss of a step, which the run's window has added to its sums."""
    before = 0.0 if run.metrics.window.total is None else float(run.metrics.window.total[0])
    step()
    assert run.metrics.window.total is not None
    return float(run.metrics.window.total[0]) - before


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
