"""The benchmark of a GPU machine in a small form on the CPU, so that it runs when a card is at hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_machine
from tests import parallel

card_service, card_memory = gpu_machine.card_service, gpu_machine.card_memory


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WCL_DEVICES", "2")
    monkeypatch.setattr(card_service, "sys", SimpleNamespace(executable=parallel.python()))


@pytest.mark.process
def test_starts_of_jobs_on_a_folder_are_measured() -> None:
    values = card_service.small_images(110)

    assert (values["files"], values["ends"], values["last"]) == (110, ["succeeded"] * 3, "cancelled")
    seconds = {name: value for name, value in values.items() if name.endswith(", s")}
    assert len(seconds) == 7
    assert any(name.startswith("cancel (phase ") for name in seconds), seconds
    assert min(seconds.values()) >= 0


@pytest.mark.process
def test_each_device_is_measured_while_a_job_trains_on_it() -> None:
    values = card_service.devices(seconds=1.0)

    assert [each["has_job"] for each in values["devices"].values()] == [True, True]
    assert {"load", "memory_used", "temperature", "problem"} <= next(iter(values["devices"].values())).keys()


def test_each_shape_has_an_estimate_and_an_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card measures the rest: the peak beside the estimate, and the run with the advised batch."""
    memory = 141 * card_memory.GIB
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (memory, memory))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    trained: list[int] = []

    def train(config: card_memory.PretrainSpec, count: int) -> SimpleNamespace:
        trained.append(config.images_per_step)
        return SimpleNamespace(of=lambda _: [{"step": count // config.images_per_step}])

    monkeypatch.setattr(card_memory, "trained", train)
    assert len(card_memory.parts()) == 6
    for changes in card_memory.SHAPES.values():
        config = card_memory.spec(**changes)
        needed = card_memory.process_bytes(config, config.images_per_step, is_gpu=True)
        assert card_memory.GPU_OVERHEAD_BYTES < needed < memory
    assert (
        card_memory.too_large(
            card_memory.spec(**card_memory.SHAPES["resnet50, 224 px, B=256"] | {"batch_size": 16_384})
        )["steps"]
        == 2
    )
    assert 256 < trained[0] < 16_384
