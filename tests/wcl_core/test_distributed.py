"""Ranks as processes on gloo: at any number of ranks a run equals the run of one process on the whole batch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.wcl_core import rank_tasks, ranks, small
from tests.wcl_core.ranks import Worlds
from wcl_core import checkpoint
from wcl_core import device as devices
from wcl_core.distributed import SINGLE, Ranks, TooFewGpusError, device_of, joined

pytestmark = pytest.mark.slow

torch.set_num_threads(1)

SIZES = (2, 4)
METHODS = {
    "wcl": {"method": "wcl"},
    "simclr": {"method": "simclr"},
    "wcl-full-gradient-joint": {"loss": {"detach_keys": False, "batch_norm_views": "joint"}},
    "wcl-crops-mates": {"multi_crop": {"crops": 2}, "loss": {"exclude_mates": True, "decoupled": True}},
}
# The state of the learner: every rank has all of it, in global order.
KEPT: dict[str, Any] = {"queue_size": 128, "momentum_decay": 0.9, "multi_crop": {"crops": 1}}


@pytest.fixture(scope="module")
def worlds() -> Iterator[Worlds]:
    with ranks.worlds() as started:
        yield started


# --- one step, in float64 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_is_that_of_one_process_on_the_whole_batch(worlds: Worlds, tmp_path: Path, method: str) -> None:
    """In float64, so that only a wrong factor, a wrong row or a local statistic can cause a difference of 1e-9."""
    fields = small.fields(**METHODS[method])
    one = rank_tasks.gradient(SINGLE, tmp_path, fields)
    assert max(abs(value) for value in one["gradient"]["backbone.conv1.weight"]) > 1e-3
    for size in SIZES:
        for result in worlds.run(size, "gradient", tmp_path / str(size), fields=fields):
            assert result["loss"] == pytest.approx(one["loss"], rel=1e-12)
            torch.testing.assert_close(torch.tensor(result["z"]), torch.tensor(one["z"]))  # rows in global order
            for part in ("gradient", "buffers"):
                assert result[part].keys() == one[part].keys()
                for name, values in one[part].items():
                    actual, expected = (torch.tensor(v, dtype=torch.float64) for v in (result[part][name], values))
                    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9, msg=f"{size}: {part} of {name}")


@pytest.mark.parametrize("shape", [[12, 3], [12, 3, 2, 2]])
def test_batch_norm_is_that_of_the_whole_batch(worlds: Worlds, tmp_path: Path, shape: list[int]) -> None:
    """In float32, with means of 100 deviations; the running statistics are bit-identical on all ranks."""
    one = rank_tasks.batch_norm(SINGLE, tmp_path, shape)
    results = worlds.run(4, "batch_norm", tmp_path, shape=shape)
    for name in ("out", "x_grad", "eval"):
        whole = torch.cat([torch.tensor(part[name]) for part in results])
        torch.testing.assert_close(whole, torch.tensor(one[name]), rtol=1e-3, atol=1e-4)
    for part in results:
        assert part["buffers"] == results[0]["buffers"]
        assert part["gradients"] == results[0]["gradients"]
        _assert_close(part["gradients"], one["gradients"], 1e-3)
        _assert_close(part["buffers"], one["buffers"], 1e-5)


def _assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=tolerance, atol=tolerance)


def test_parts_are_consecutive_and_whole() -> None:
    rows = torch.arange(12)
    for size in (1, 2, 3, 4):
        assert torch.equal(torch.cat([rows[Ranks(rank, size).own(12)] for rank in range(size)]), rows)


def test_a_single_process_joins_no_group() -> None:
    x = torch.randn(2, 3)
    with joined({}) as alone:
        assert alone == SINGLE
        assert alone.gather(x)[0] is x
        assert alone.agreed(7) == 7


def test_a_lost_rank_raises_its_own_error(worlds: Worlds, tmp_path: Path) -> None:
    assert worlds.run(2, "lose_a_rank", tmp_path) == ["lost", "left"]


# --- whole runs ----------------------------------------------------------------------------------------------------

RUN: dict[str, Any] = {"epochs": 2, "checkpoints": {"every_epochs": 1}, "knn_every_epochs": 2}


def tensors(folder: Path, step: int) -> dict[str, Tensor]:
    return checkpoint.read(folder / "from-0" / "checkpoints" / f"step-{step:08d}.safetensors").tensors


def digests(folder: Path) -> dict[str, str]:
    paths = sorted((folder / "from-0" / "checkpoints").glob("*"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_steps_of_two_ranks_are_compiled(worlds: Worlds, tmp_path: Path) -> None:
    """Batch norm sums over the ranks within the compiled layers."""
    fields = small.fields(processes=2, method="simclr", knn_every_epochs=0, epochs=2)
    eager, _ = worlds.run(2, "training", tmp_path / "eager", fields=fields)
    fields |= {"execution": "compiled"}
    first, second = worlds.run(2, "compiled_training", tmp_path / "compiled", fields=fields)
    records = first["records"]
    (started,) = [record for record in records if record["type"] == "started"]
    assert (started["execution"], started.get("execution_reason")) == ("compiled", None)
    assert second["outcome"] == "succeeded"
    assert small.curves(records) == pytest.approx(small.curves(eager["records"]), rel=1e-4)


@pytest.mark.parametrize("changes", [{"method": "wcl"}, {"method": "simclr"}, KEPT], ids=["wcl", "simclr", "kept"])
def test_a_run_is_the_same_at_any_number_of_ranks(worlds: Worlds, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Losses, weights and momentum over eight steps, in float64.

    Sums in another order differ by about 1e-12 after them. In float32 a ReLU at its edge or a nearly tied neighbour may
    fall the other way, which is independent of ranks and would need a tolerance that hides real errors.
    """
    fields = small.fields(**RUN, **changes)
    one = rank_tasks.double_training(SINGLE, tmp_path / "1", fields)
    expected, curves = tensors(tmp_path / "1", 8), small.curves(one["records"])
    assert expected["model/backbone.conv1.weight"].dtype == torch.float64
    for size in SIZES:
        folder = tmp_path / str(size)
        results = worlds.run(size, "double_training", folder, fields=fields)
        assert [part["outcome"] for part in results] == ["succeeded"] * size
        assert all(part["records"] == [] for part in results[1:]), "only the first rank reports"
        assert os.listdir(folder / "from-0" / "checkpoints") == os.listdir(tmp_path / "1" / "from-0" / "checkpoints")
        assert not any((folder / f"from-{rank}").exists() for rank in range(1, size)), "only the first rank writes"
        result = small.curves(results[0]["records"])
        assert result.keys() == curves.keys()
        losses = {key: value for key, value in curves.items() if key[0].startswith("train/loss")}
        assert {key: result[key] for key in losses} == pytest.approx(losses, rel=1e-9)
        for name, tensor in tensors(folder, 8).items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-9, msg=f"{size} ranks: {name}")


@pytest.mark.parametrize("requested_rank", [0, 1])
def test_resume_is_exact_and_a_request_counts_on_the_first_rank_alone(
    worlds: Worlds, tmp_path: Path, requested_rank: int
) -> None:
    fields = small.fields(**RUN)
    first = worlds.run(2, "training", tmp_path / "a", fields=fields, stop=3, stop_rank=requested_rank)
    if requested_rank == 1:
        assert [part["outcome"] for part in first] == ["succeeded"] * 2
        return
    assert [part["outcome"] for part in first] == ["drained"] * 2
    (saved,) = digests(tmp_path / "a")
    assert saved == "step-00000003.safetensors"

    resume = str(tmp_path / "a" / "from-0" / "checkpoints" / saved)
    second = worlds.run(2, "training", tmp_path / "b", fields=fields, resume=resume)

    worlds.run(2, "training", tmp_path / "whole", fields=fields)
    assert digests(tmp_path / "b") == digests(tmp_path / "whole")
    assert [record for record in second[0]["records"] if record["type"] == "warning"] == []
    assert checkpoint.read(Path(resume)).metadata["environment"]["world_size"] == 2


def test_resuming_with_another_number_of_ranks_gives_a_warning(worlds: Worlds, tmp_path: Path) -> None:
    worlds.run(2, "training", tmp_path / "a", fields=small.fields(**RUN, processes=2), stop=3)
    (saved,) = (tmp_path / "a" / "from-0" / "checkpoints").glob("*")

    result = rank_tasks.training(SINGLE, tmp_path / "b", small.fields(**RUN, processes=1), resume=str(saved))

    assert result["outcome"] == "succeeded"
    (warning,) = (record for record in result["records"] if record["type"] == "warning")
    assert warning["reason"] == "resume_environment_changed"
    assert "world_size: 2 -> 1" in warning["message"]


@pytest.mark.parametrize(
    ("gpus", "processes", "device"), [(0, 2, "cpu"), (1, 1, "cuda"), (2, 2, "cuda:1"), (1, 2, None)]
)
def test_more_processes_than_gpus_are_refused(
    monkeypatch: pytest.MonkeyPatch, gpus: int, processes: int, device: str | None
) -> None:
    """The number of GPUs is a stand-in; the CPU takes all processes only where no GPU is seen."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    last = Ranks(processes - 1, processes)
    if device is None:
        with pytest.raises(TooFewGpusError, match="2 processes need a GPU each, but the run sees 1"):
            device_of(last)
    else:
        assert device_of(last) == torch.device(device)


@pytest.mark.parametrize(("local_size", "chosen"), [(1, []), (2, [torch.device("cuda", 1)])])
def test_a_node_with_one_gpu_joins_the_ranks_of_other_nodes(
    monkeypatch: pytest.MonkeyPatch, local_size: int, chosen: list[torch.device]
) -> None:
    """CUDA and NCCL are stand-ins; the one of `set_device` refuses a device without an index as the real one does."""
    indexed: list[torch.device] = []

    def set_device(device: torch.device) -> None:
        if device.index is None:
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got: {device}")
        indexed.append(device)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: local_size)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(devices, "check", lambda _: None)
    for name in ("init_process_group", "new_group", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, **__: None)
    environment = {"RANK": str(2 * local_size - 1), "WORLD_SIZE": str(2 * local_size)}
    local = {"LOCAL_RANK": str(local_size - 1), "LOCAL_WORLD_SIZE": str(local_size)}

    with joined(environment | local) as last:
        assert (last.rank, last.size) == (2 * local_size - 1, 2 * local_size)

    assert indexed == chosen
