"""Checkpoint files: equal bytes for equal states, whole or absent, and damage is named."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.wcl_core import small
from wcl_core import checkpoint
from wcl_core.checkpoint import CheckpointError
from wcl_core.config import resolve_spec

torch.set_num_threads(1)


def state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model/a.weight": torch.randn(3, 5, generator=generator),
        "model/a.count": torch.tensor(7),
        "model/ab.kernel": torch.randn(2, 3, 3, 3, generator=generator),
        "optimizer/a.weight/momentum": torch.randn(3, 5, generator=generator),
        "other/bytes": torch.arange(200, dtype=torch.uint8),
    }


def metadata(**changes: Any) -> dict[str, Any]:
    return {"spec": resolve_spec(small.spec()), "step": 3, "epoch": 0} | changes


def test_a_written_checkpoint_is_read_back(tmp_path: Path) -> None:
    written = checkpoint.write(tmp_path / "new" / "one.safetensors", state(), metadata())
    read = checkpoint.read(written.path)
    assert read.metadata == metadata() | {"format_version": 1}
    assert read.tensors.keys() == state().keys()
    for name, tensor in state().items():
        assert torch.equal(read.tensors[name], tensor)
        assert read.tensors[name].dtype == tensor.dtype
    assert read.part("model/a.").keys() == {"weight", "count"}
    assert read.spec == small.spec()


def test_digest_and_size_are_those_of_the_file(tmp_path: Path) -> None:
    written = checkpoint.write(tmp_path / "one.safetensors", state(), metadata())
    content = written.path.read_bytes()
    assert (written.sha256, written.size) == (hashlib.sha256(content).hexdigest(), len(content))


def test_equal_states_have_equal_bytes(tmp_path: Path) -> None:
    """The order of names, the layout in memory, the folder and an older file make no difference."""
    first = checkpoint.write(tmp_path / "one.safetensors", state(), metadata())
    shuffled = {
        name: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in reversed(state().items())
    }
    for name, tensor in shuffled.items():
        if tensor.ndim == 2:
            shuffled[name] = tensor.T.contiguous().T.requires_grad_()
    facts = dict(reversed(metadata().items()))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.safetensors").write_bytes(b"older")
    second = checkpoint.write(tmp_path / "b" / "two.safetensors", shuffled, facts)
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.path.read_bytes() != checkpoint.write(first.path, state(1), metadata()).path.read_bytes()


def test_the_file_is_plain_safetensors_without_pickle(tmp_path: Path) -> None:
    written = checkpoint.write(tmp_path / "one.safetensors", state(), metadata())
    assert load_file(written.path).keys() == state().keys()
    assert b"ctorch" not in written.path.read_bytes()


def test_a_full_disk_leaves_the_older_file_and_nothing_else(small_disk: Path) -> None:
    older = checkpoint.write(small_disk / "one.safetensors", {"model/a": torch.ones(10)}, metadata())
    with pytest.raises(OSError, match="No space") as caught:
        checkpoint.write(small_disk / "one.safetensors", {"model/a": torch.ones(100_000)}, metadata())
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in small_disk.iterdir()] == ["one.safetensors"]
    assert hashlib.sha256(older.path.read_bytes()).hexdigest() == older.sha256


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_an_interruption_before_the_rename_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        checkpoint.write(tmp_path / "one.safetensors", state(), metadata())
    assert list(tmp_path.iterdir()) == []


def test_the_name_exists_only_after_the_content_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls, synced = tmp_path / "one.safetensors", [], []
    sync = os.fsync

    def watch(descriptor: int) -> None:
        calls.append(path.exists())
        synced.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    checkpoint.write(path, state(), metadata())
    assert calls == [False, True]  # the file's own before the rename, its folder's after it
    assert synced == [path.stat().st_ino, tmp_path.stat().st_ino]  # renamed, not copied


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    with pytest.raises(CheckpointError, match=r"one\.safetensors does not exist"):
        checkpoint.read(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.read(tmp_path)
    content = checkpoint.write(path, state(), metadata()).path.read_bytes()
    for damaged in (b"", b"no checkpoint", content[:100], content[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"one\.safetensors cannot be read"):
            checkpoint.read(path)


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"format_version": 2}'])
def test_files_of_other_programs_are_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "one.safetensors"
    save_file({"model/a": torch.ones(2)}, path, metadata=None if text is None else {"wcl": text})
    with pytest.raises(CheckpointError, match=r"one\.safetensors"):
        checkpoint.read(path)


def test_a_spec_without_a_newer_field_gets_its_default(tmp_path: Path) -> None:
    older = json.loads(json.dumps(metadata()))
    del older["spec"]["loss"]["detach_keys"]
    assert checkpoint.read(checkpoint.write(tmp_path / "one", state(), older).path).spec == small.spec()
    older["spec"]["later"] = 1
    read = checkpoint.read(checkpoint.write(tmp_path / "one", state(), older).path)
    with pytest.raises(CheckpointError, match="later"):
        _ = read.spec


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model/ab.kernel", "optimizer/a.weight/momentum"])
def test_one_value_that_is_not_finite_is_found(name: str, value: float) -> None:
    tensors = state()
    assert checkpoint.is_finite(tensors)
    tensors[name].view(-1)[-1] = value
    assert not checkpoint.is_finite(tensors)
    assert checkpoint.is_finite({"bytes": torch.arange(200, dtype=torch.uint8)})
