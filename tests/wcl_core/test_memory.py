"""The memory of a training process: counted tensors against the formula, and the search for the batch that fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.wcl_core import small
from wcl_core import attempt, checkpoint, limits
from wcl_core.attempt import run_attempt
from wcl_core.config import memory
from wcl_core.config.memory import advice, largest_batch, process_bytes
from wcl_core.networks.backbones import build_backbone
from wcl_core.protocol import RunFile
from wcl_core.reporter import MemoryReporter
from wcl_core.training import batch_size
from wcl_core.training.pretrain import pretrain

GIB = 2**30
SHAPES: list[dict[str, Any]] = [
    {"backbone": {"name": "resnet18", "stem": "small"}, "image_size": 32, "precision": "bfloat16"},
    {"backbone": {"name": "resnet18", "stem": "small"}, "image_size": 32, "precision": "float32"},
    {"backbone": {"name": "resnet50", "stem": "imagenet"}, "image_size": 96, "precision": "bfloat16"},
    {"backbone": {"name": "tiny", "stem": "stride2"}, "image_size": 32, "precision": "float32", "crops": 2},
    {"backbone": {"name": "vit_small"}, "image_size": 64, "precision": "bfloat16"},
    {"backbone": {"name": "wide_resnet50_2", "stem": "stride2"}, "image_size": 64, "precision": "bfloat16"},
]


def shape(image_size: int, crops: int = 0, **changes: Any) -> dict[str, Any]:
    heads = {"hidden_dim": 512, "output_dim": 64}
    return {
        "data": {"name": "digits", "image_size": image_size},
        "multi_crop": {"crops": crops},
        "heads": heads,
    } | changes


@pytest.mark.parametrize("place", [0, 3, 4])
def test_the_cost_of_an_image_is_what_pytorch_counts(place: int) -> None:
    spec = small.spec(**shape(**SHAPES[place] | {"crops": 0}))
    network, side = build_backbone(spec.backbone, spec.data.image_size), spec.data.image_size
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, side, side))
    cost = memory.image_cost(spec)
    assert cost == pytest.approx(2 * 3 * counter.get_total_flops() / 2, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(SHAPES)))
def test_the_formula_is_what_autograd_keeps(place: int) -> None:
    spec = small.spec(**shape(**SHAPES[place]))
    weights, kept, views = batch_size._counted(spec)
    with_one, with_two = (process_bytes(spec, count, is_gpu=False) for count in (100, 200))

    assert with_one is not None
    assert with_two is not None
    assert weights == 6 * 4 * memory.num_weights(spec)
    # An image's share of the copies in another precision and of the loss is left out by the formula.
    count = 4 if not spec.multi_crop.crops else 5
    copies = 2 * memory.num_weights(spec) / count if spec.precision == "bfloat16" else 0
    assert (with_two - with_one) / 100 == pytest.approx(kept - copies + views, rel=0.1)


def test_the_largest_batch_is_the_last_one_that_fits() -> None:
    spec = small.spec(**shape(**SHAPES[2]), processes=2, batch_size=64)
    largest = largest_batch(spec, 8 * GIB, is_gpu=True)

    needed = [process_bytes(spec, largest + more, is_gpu=True) or 0 for more in (0, 2)]
    assert needed[0] <= 8 * GIB < needed[1]
    assert largest % 2 == 0
    assert largest_batch(spec, GIB // 2, is_gpu=True) == 0


def test_the_known_run_of_a_card() -> None:
    """ResNet-50, 224 pixels, 256 images, bfloat16: 22 GiB, as one H200 measured."""
    fields = shape(224, backbone={"name": "resnet50", "stem": "imagenet"}, heads={}, batch_size=256)
    spec = small.spec(**fields, optimizer={"name": "lars"})
    assert process_bytes(spec, 256, is_gpu=True) == pytest.approx(22 * GIB, rel=0.15)


def test_the_advice_names_needed_and_available_memory_and_a_batch_that_fits() -> None:
    spec = small.spec(**shape(224, backbone={"name": "resnet50", "stem": "imagenet"}, heads={}, batch_size=1024))
    text = advice(spec, 24 * GIB, is_gpu=True)
    assert text is not None
    assert text.startswith("a process needs about 8")
    assert "the device has 24.0 GiB; use a batch_size of at most 2" in text
    smaller = small.spec(**shape(224, backbone={"name": "resnet50", "stem": "imagenet"}, heads={}, batch_size=2))
    assert "use a micro_batch_size" in (advice(smaller, GIB, is_gpu=True) or "")


@pytest.mark.parametrize(
    ("most", "limit", "expected"), [(1000, 1000, 1000), (1000, 100, 96), (4096, 3, 3), (7, 9, 7), (9, 1, 2)]
)
def test_the_search_doubles_and_bisects(most: int, limit: int, expected: int) -> None:
    tried: list[int] = []

    def fits(part: int) -> bool:
        tried.append(part)
        return part <= limit

    assert batch_size.largest(fits, most) == expected
    assert len(tried) <= 16
    assert max(tried, default=0) <= most


@pytest.mark.slow
def test_a_run_finds_its_batch_and_keeps_it_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = small.spec(batch_size="auto", epochs=2)
    reporter = MemoryReporter(lambda records: "drain" if "metrics" in {each["type"] for each in records} else None)
    assert pretrain(spec, reporter, dataset=small.digits(), output_dir=tmp_path / "a") == "drained"
    (started,) = reporter.of("started")
    size = started["batch_size"]
    assert 2 < size <= len(small.digits().train) // batch_size.LEAST_STEPS
    (file,) = sorted((tmp_path / "a" / "checkpoints").iterdir())
    assert checkpoint.read(file).spec.batch_size == size

    monkeypatch.setattr(limits, "memory_bytes", lambda: GIB // 2)  # another machine, which would hold less
    after = MemoryReporter()
    arguments = {"dataset": small.digits(), "output_dir": tmp_path / "b", "resume": file}
    assert pretrain(spec, after, **arguments) == "succeeded"  # type: ignore[arg-type]
    assert after.of("started")[0]["batch_size"] == size

    smallest = MemoryReporter(lambda _: "cancel")
    pretrain(spec, smallest, dataset=small.digits(), output_dir=tmp_path / "c")
    assert smallest.of("started")[0]["batch_size"] == 2


def test_a_run_finds_its_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> Any:
        reporter = MemoryReporter(lambda _: "cancel")
        pretrain(small.spec(micro_batch_size="auto"), reporter, dataset=small.digits(), output_dir=tmp_path)
        return reporter.of("started")[0]["micro_batch_size"]

    assert found() is None  # the whole batch fits
    monkeypatch.setattr(limits, "memory_bytes", lambda: GIB // 2)
    assert found() == 2


def test_an_attempt_without_memory_says_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(attempt, "pretrain", fail)
    run = {"job_id": "job", "attempt": 1, "host": "here", "kind": "pretrain", "spec": small.fields(), "resume": None}
    RunFile.model_validate(run | {"dataset": {"kind": "builtin", "path": None}}).write(tmp_path)

    assert run_attempt(tmp_path, None) == 0

    text = (tmp_path / "report.jsonl").read_text()
    assert '"reason":"out_of_memory"' in text
    assert "a process needs about" in text
    assert "CUDA out of memory" in text
