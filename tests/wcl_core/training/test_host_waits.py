"""A training step never waits for the GPU: the host issues the next one meanwhile, or a CUDA graph has it all.

Without a GPU, the forward pass runs on fake GPU tensors, which have no values to read, and the whole step on a CPU with
every operation refused that reads a value or whose shape depends on values.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.wcl_core import small
from wcl_core import transfer
from wcl_core.config import PretrainSpec
from wcl_core.data import epoch_batches
from wcl_core.distributed import SINGLE
from wcl_core.images.view_parameters import Operations, ViewParameters
from wcl_core.methods import build_method, weak_labels
from wcl_core.methods.base import Loss
from wcl_core.networks.model import Model
from wcl_core.reporter import NullReporter
from wcl_core.training.execution import Step
from wcl_core.training.learner import Learner
from wcl_core.training.optim import build_optimizer, make_capturable
from wcl_core.training.pretrain import _Run
from wcl_core.training.view_maker import Inputs, ViewMaker
from wcl_core.transfer import constant, send

OPTIONS: dict[str, dict[str, Any]] = {
    "wcl": {},
    "simclr": {"method": "simclr"},
    "lars": {"optimizer": {"name": "lars", "learning_rate": 0.3}},
    "adamw and micro-batches": {"optimizer": {"name": "adamw", "learning_rate": 1e-3}, "micro_batch_size": 32},
    "momentum encoder and queue": {"momentum_decay": 0.9, "queue_size": 128},
    "small crops": {"multi_crop": {"crops": 2, "image_size": 8}},
    "mates out of the negatives": {"loss": {"exclude_mates": True, "weak_ramp_fraction": 0.0}},
    "second level, keys with gradient": {"loss": {"finch_level": 2, "detach_keys": False}},
    "ramps": {
        "multi_crop": {"crops": 1, "image_size": 8, "ramp_fraction": 0.5, "restrict_to_component": True},
        "loss": {"exclude_mates": True, "weak_ramp_fraction": 0.5, "decoupled": True},
    },
}


@contextmanager
def waits_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif("not torch.cuda.is_available()", reason="no GPU here")  # a query at the import would break forks
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_ten_steps_never_wait_for_the_gpu(options: dict[str, Any], tmp_path: Path) -> None:
    spec = small.spec(weak_augmentation_epochs=0, log_every_steps=1000, knn_every_epochs=0, **options)
    run = _Run(spec, NullReporter(), small.few_digits(), tmp_path, None, SINGLE)
    size, epochs = len(run.images), range(small.EPOCHS)
    indices = [index for epoch in epochs for index in epoch_batches(size, spec.batch_size, spec.seed, epoch)]
    inputs = list(zip(indices, run.view_maker.ahead(range(run.total_steps)), strict=True))
    run._train_step(*inputs[0])  # allocates the state of the optimiser
    with waits_are_errors():
        for index, parameters in islice(inputs, 1, 11):
            run._train_step(index, parameters)
    run.saver.close()
    assert run.step == 11


def test_on_a_cpu_values_are_sent_as_they_are_and_constants_are_kept() -> None:
    values = torch.arange(3)
    assert send(values, torch.device("cpu")) is values
    one = constant((0.5, 2.0), torch.zeros(1, dtype=torch.float64))
    assert (one.tolist(), one.dtype) == ([0.5, 2.0], torch.float64)
    assert constant((0.5, 2.0), torch.zeros(2, dtype=torch.float64)) is one
    assert not constant((0.5, 2.0), torch.zeros(1)).is_inference()


# --- without a GPU -------------------------------------------------------------------------------------------------

READS_VALUES = re.compile(r"aten\.(_local_scalar_dense|is_nonzero|equal|nonzero|masked_select|_?unique|bincount)")


class NoValues(TorchDispatchMode):
    """Refuses operations that read a value back to the host, or whose shape depends on values."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        index = args[1] if func is torch.ops.aten.index.Tensor else ()
        if READS_VALUES.match(str(func)) or any(rows is not None and rows.dtype == torch.bool for rows in index):
            raise AssertionError(f"{func} needs a value")
        return func(*args, **kwargs or {})


def step_of(spec: PretrainSpec) -> Callable[[], Loss]:
    """Return a step on the default device, with its inputs as a CUDA graph reads them."""
    method = build_method(spec)
    learner = Learner(spec, method, lambda: Model(spec, method), is_bfloat16=False)
    optimizer = build_optimizer(spec, learner.model)
    make_capturable(optimizer)
    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    maker = ViewMaker(spec, SINGLE, torch.device("cpu"), (8, 8), small.STEPS_PER_EPOCH, torch.channels_last)
    operations = Operations(turns=True, hue=True, grey=True, blur=True)
    # Drawing is work of the host; these are crops of one to two pixels a side.
    drawn = [ViewParameters(torch.rand(16, 64) + 1, torch.rand(6, 64) < 0.5, operations) for _ in range(2)]
    drawn += drawn[:1] * spec.multi_crop.crops
    step = Step(learner, optimizer, SINGLE, 12, maker.fixed_views(lambda function: function))
    inputs = Inputs(images, tuple(drawn), torch.arange(64))
    return partial(step, inputs, torch.ones((), dtype=torch.int64), torch.ones(()))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_no_operation_of_a_step_reads_a_value(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weak_labels, "NUMPY_UP_TO_ROWS", 0)  # NumPy is for CPUs
    step = step_of(small.spec(**options))
    with NoValues():
        loss = step()
    assert loss.total.isfinite()


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_forward_pass_on_a_gpu_reads_no_value(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd needs a real GPU for the backward pass."""
    monkeypatch.setattr(Tensor, "backward", lambda _: None)
    monkeypatch.setattr(torch.autograd, "backward", lambda *_: None)
    monkeypatch.setattr(transfer, "_constant", transfer._constant.__wrapped__)  # keep no fake tensor
    with FakeTensorMode(), torch.device("cuda"):
        loss = step_of(small.spec(**options))()
    assert (loss.total.device.type, loss.total.shape) == ("cuda", ())


def test_values_that_are_read_are_noticed() -> None:
    with NoValues(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        torch.ones(()).item()
    with NoValues(), pytest.raises(AssertionError, match="index"):
        _ = torch.ones(3)[torch.ones(3, dtype=torch.bool)]
    with FakeTensorMode(), torch.device("cuda"), pytest.raises(DataDependentOutputException):
        torch.ones(()).item()
