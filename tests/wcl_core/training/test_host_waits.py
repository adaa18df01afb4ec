"""A training step never waits for the GPU: the host issues the next one meanwhile."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.wcl_core import small
from wcl_core.data import epoch_batches
from wcl_core.distributed import SINGLE
from wcl_core.reporter import NullReporter
from wcl_core.training.pretrain import _Run
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_ten_steps_never_wait_for_the_gpu(options: dict[str, Any], tmp_path: Path) -> None:
    spec = small.spec(weak_augmentation_epochs=0, log_every_steps=1000, knn_every_epochs=0, **options)
    run = _Run(spec, NullReporter(), small.few_digits(), tmp_path, None, SINGLE)
    size, epochs = len(run.images), range(small.EPOCHS)
    indices = [(index, epoch) for epoch in epochs for index in epoch_batches(size, spec.batch_size, spec.seed, epoch)]
    run._train_step(*indices[0])  # allocates the state of the optimiser
    with waits_are_errors():
        for index, epoch in islice(indices, 1, 11):
            run._train_step(index, epoch)
    run.saver.close()
    assert run.step == 11


def test_on_a_cpu_values_are_sent_as_they_are_and_constants_are_kept() -> None:
    values = torch.arange(3)
    assert send(values, torch.device("cpu")) is values
    one = constant((0.5, 2.0), torch.zeros(1, dtype=torch.float64))
    assert (one.tolist(), one.dtype) == ([0.5, 2.0], torch.float64)
    assert constant((0.5, 2.0), torch.zeros(2, dtype=torch.float64)) is one
    assert not constant((0.5, 2.0), torch.zeros(1)).is_inference()
