"""Streamed rows are the resident ones: same images, same order, same bytes of a run."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.wcl_core import small
from tests.wcl_core.small import STEPS_PER_EPOCH
from tests.wcl_core.training.test_pretrain import files, last_file, run
from wcl_core.data import Split, epoch_batches, rows
from wcl_core.data.rows import Rows

torch.set_num_threads(1)
CPU = torch.device("cpu")


def split(is_mapped: bool) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(40), "0" * 64, is_mapped)


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_RESIDENT_BYTES", 0)


def test_only_large_mapped_splits_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    num_bytes = 40 * 3 * 4 * 4
    for limit, expected in ((num_bytes, False), (num_bytes - 1, True)):
        monkeypatch.setattr(rows, "_RESIDENT_BYTES", limit)
        assert Rows(split(is_mapped=True), CPU).is_streamed is expected
        assert not Rows(split(is_mapped=False), CPU).is_streamed


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_streamed_batches_are_the_resident_ones(streaming: None, count: int) -> None:
    streamed, images = Rows(split(is_mapped=True), CPU), split(is_mapped=False).images
    batches = list(epoch_batches(40, 8, seed=1, epoch=2, start=5 - count))
    received = [(index, streamed[index]) for index in streamed.ahead(iter(batches))]
    assert len(received) == count
    for (index, batch), expected in zip(received, batches, strict=True):
        assert torch.equal(index, expected)
        assert torch.equal(batch, images[expected])


def test_rows_are_gathered_one_step_ahead_in_another_thread(streaming: None, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[int] = []
    original = rows._Buffers.gather

    def gather(self: rows._Buffers, index: torch.Tensor) -> rows._Gathered:
        gathered.append(int(index[0]))
        return original(self, index)

    monkeypatch.setattr(rows._Buffers, "gather", gather)
    streamed = Rows(split(is_mapped=True), CPU)
    batches = [torch.tensor([number, 7]) for number in range(4)]
    for number, index in enumerate(streamed.ahead(iter(batches))):
        assert int(streamed[index][0, 0, 0, 0]) == int(split(False).images[number, 0, 0, 0])
        assert len(gathered) >= number + 1
    assert gathered == [0, 1, 2, 3]  # each once, in order: asking for rows gathers nothing again


def test_an_index_that_was_not_read_ahead_works_too(streaming: None) -> None:
    streamed, images = Rows(split(is_mapped=True), CPU), split(is_mapped=False).images
    for _ in streamed.ahead(iter([torch.tensor([1, 2]), torch.tensor([3, 4])])):
        assert torch.equal(streamed[torch.tensor([9, 8])], images[[9, 8]])
    assert torch.equal(streamed[torch.tensor([5])], images[[5]])


def test_an_epoch_left_early_leaves_no_thread_behind(streaming: None) -> None:
    streamed = Rows(split(is_mapped=True), CPU)
    batches = streamed.ahead(epoch_batches(40, 8, seed=0, epoch=0))
    next(batches)
    batches.close()
    assert not any(thread.name.startswith("rows") for thread in threading.enumerate())


@pytest.mark.slow
def test_a_streamed_run_ends_with_the_bytes_of_a_resident_one_also_when_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small.spec(knn_every_epochs=0, checkpoints={"every_epochs": 3})
    run(spec, tmp_path / "resident")
    data = small.few_digits()
    mapped = replace(data, train=replace(data.train, is_mapped=True))
    monkeypatch.setattr(rows, "_RESIDENT_BYTES", 0)
    run(spec, tmp_path / "streamed", dataset=mapped)
    assert files(tmp_path / "streamed") == files(tmp_path / "resident")
    run(spec, tmp_path / "a", dataset=mapped, stop=(STEPS_PER_EPOCH + 1, "drain"))
    run(spec, tmp_path / "b", dataset=mapped, resume=last_file(tmp_path / "a"))
    assert files(tmp_path / "b") == files(tmp_path / "resident")


def test_pretraining_uses_the_unlabelled_split(tmp_path: Path) -> None:
    """kNN still uses the labelled split; no monitor needs labels of the unlabelled one."""
    data = small.few_digits()
    unlabelled = Split(data.train.images[:130], torch.full((130,), -1), "1" * 64)
    _, reporter = run(small.spec(), tmp_path, dataset=replace(data, unlabelled=unlabelled))
    (started,) = reporter.of("started")
    assert started["total_steps"] == 2 * 3
    names = {name for name, _ in small.curves(reporter.records)}
    assert {"eval/knn_top1", "weak/view_agreement"} <= names
    assert not names & {"weak/pair_precision", "weak/pair_precision_chance"}
