"""Snapshots: the bytes of safetensors' own writer, one reused buffer, and background writes."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from wcl_core import checkpoint
from wcl_core.checkpoint import BackgroundWriter, NonFiniteStateError
from wcl_core.snapshot import Snapshot

torch.set_num_threads(1)

DTYPES = (torch.float32, torch.int64, torch.bfloat16, torch.uint8, torch.float64, torch.bool, torch.int32)


def state(seed: int = 0) -> dict[str, Tensor]:
    """Return every data type, sizes that leave the next tensor unaligned, an empty tensor and a scalar."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{place}/{dtype}": (torch.rand(3, 5, generator=generator) * 9).to(dtype) for place, dtype in enumerate(DTYPES)
    }
    kernel = torch.randn(2, 3, 4, 4, generator=generator)
    return tensors | {
        "kernel": kernel.contiguous(memory_format=torch.channels_last),
        "née": torch.tensor(7),
        "none": torch.empty(0, 4),
        "one": torch.tensor(2.5),
    }


@pytest.mark.parametrize("length", range(8))
def test_the_bytes_are_those_of_safetensors(length: int) -> None:
    """Header lengths with every amount of padding."""
    snapshot, metadata = Snapshot(), {"a": "é" + "x" * length}
    snapshot.take(state())
    plain = {name: tensor.contiguous() for name, tensor in state().items()}
    assert snapshot.header(metadata) + bytes(snapshot.body()) == save(plain, metadata=metadata)


def test_a_snapshot_keeps_its_values_and_its_buffer() -> None:
    tensors, snapshot = state(), Snapshot()
    snapshot.take(tensors)
    buffer = snapshot.tensors()["kernel"].data_ptr()
    for tensor in tensors.values():
        tensor.zero_()
    assert all(torch.equal(snapshot.tensors()[name], tensor) for name, tensor in state().items())
    snapshot.take(tensors)
    assert not any(tensor.any() for tensor in snapshot.tensors().values())
    assert snapshot.tensors()["kernel"].data_ptr() == buffer


def test_another_layout_gets_another_buffer() -> None:
    snapshot = Snapshot()
    snapshot.take({"a": torch.ones(3)})
    snapshot.take({"a": torch.ones(3).long(), "b": torch.zeros(2)})
    assert snapshot.tensors()["a"].dtype == torch.int64
    assert snapshot.tensors().keys() == {"a", "b"}


def test_a_background_write_stores_the_state_at_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller changes its tensors while the disk is slow; the file is reported only when it is complete."""
    gate, sync = threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        assert gate.wait(30)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    writer, tensors, path = BackgroundWriter(), state(), tmp_path / "new" / "one.safetensors"
    assert writer.finish() is None
    writer.start(path, tensors, {"step": 1})
    for tensor in tensors.values():
        tensor.zero_()
    assert not writer.is_done()
    assert not path.exists()
    gate.set()
    written = writer.finish()
    assert written is not None
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.read_bytes() == checkpoint.write(tmp_path / "two", state(), {"step": 1}).path.read_bytes()
    assert writer.is_done()
    writer.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_not_written(tmp_path: Path, value: float) -> None:
    writer, tensors = BackgroundWriter(), state()
    tensors["one"].fill_(value)
    writer.start(tmp_path / "one.safetensors", tensors, {})
    tensors["one"].fill_(0)  # the copied state counts
    with pytest.raises(NonFiniteStateError):
        writer.finish()
    assert list(tmp_path.iterdir()) == []
    writer.start(tmp_path / "one.safetensors", tensors, {})
    assert writer.finish() is not None
    writer.close()


def test_finish_raises_an_error_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    writer = BackgroundWriter()
    writer.start(tmp_path / "file" / "one.safetensors", state(), {})
    with pytest.raises(OSError, match="file"):
        writer.finish()
    writer.close()
