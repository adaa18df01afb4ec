"""Checkpoint files: one safetensors file each, no pickle, equal bytes for equal states.

    model/<module>.<parameter>        weights and buffers, e.g. model/backbone.layer1.0.conv1.weight
    optimizer/<parameter>/<slot>      the optimiser's slots of that parameter, see `optimizer`
    metadata["wcl"]                   canonical JSON: format_version, resolved spec, dataset digest, step, epoch and the
                                      environment that exact resume depends on (device, build, memory format)

Times, attempts and parents are not in the file: a job system keeps those beside it.  What to put into a state is
`pretrain`'s business; how an exported backbone looks is `export`'s.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wcl_core.config import PretrainSpec, parse_spec
from wcl_core.failpoints import failpoint
from wcl_core.files import Step, write_whole
from wcl_core.snapshot import Snapshot

FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """The file is missing, damaged, or not one of ours; the message says which file and why."""


class NonFiniteStateError(ArithmeticError):
    """A weight, a running statistic or a momentum is NaN or infinite; such a state is never written."""


@dataclass(frozen=True)
class Written:
    """A checkpoint that lies whole on the disk.

    Attributes:
        path: where it is.
        sha256: digest of its bytes, 64 hex digits.
        size: in bytes.
    """

    path: Path
    sha256: str
    size: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back: all tensors by name, on the CPU, and the metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below `prefix`, which is cut from their names."""
        return {name[len(prefix) :]: t for name, t in self.tensors.items() if name.startswith(prefix)}

    @property
    def spec(self) -> PretrainSpec:
        """The spec of the run, lifted to today's version and with today's defaults for fields that are younger.

        Raises:
            CheckpointError: when this version cannot read it.
        """
        try:
            spec = parse_spec("pretrain", self.metadata["spec"])
        except (KeyError, TypeError, AttributeError, ValidationError) as error:
            raise CheckpointError(f"the checkpoint's spec cannot be read: {error}") from error
        assert isinstance(spec, PretrainSpec)
        return spec


def is_finite(tensors: dict[str, Tensor]) -> bool:
    """Whether every floating-point value is finite; one host synchronisation in all."""
    flags = [torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point()]
    return bool(torch.stack(flags).all()) if flags else True


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Written:
    """Write beside, fsync, rename, fsync the folder: the name exists only for a whole file.

    Args:
        path: the final name; its folder is made.
        tensors: by name, any device; copied to the CPU.
        metadata: JSON values.

    Raises:
        OSError: when the disk is full or read-only; nothing is left behind, whatever stops it.
    """
    snapshot = Snapshot()
    snapshot.take(tensors)
    return _write(path, snapshot, metadata)


class BackgroundWriter:
    """Writes one checkpoint at a time on a thread of its own, from a snapshot whose buffer is used again.

    start ── the state is copied; training goes on ── is_done? ── finish: the file lies whole, or its error
    """

    def __init__(self) -> None:
        self._snapshot = Snapshot()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[Written] | None = None

    def start(self, path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Copy the tensors and begin to write them; arguments as for `write`. `finish` has to come in between."""
        assert self._running is None, "the snapshot is still being written"
        self._snapshot.take(tensors)
        self._running = self._pool.submit(self._check_and_write, path, metadata)

    def is_done(self) -> bool:
        """Whether `finish` would not have to wait."""
        return self._running is None or self._running.done()

    def finish(self) -> Written | None:
        """Wait for what was started; None when nothing was.

        Raises:
            NonFiniteStateError: the state held a value that is not finite, and no file was written.
            OSError: as `write`.
        """
        running, self._running = self._running, None
        return None if running is None else running.result()

    def close(self) -> None:
        """End the thread, after what it is writing."""
        self._pool.shutdown()

    def _check_and_write(self, path: Path, metadata: dict[str, Any]) -> Written:
        self._snapshot.wait()
        if not is_finite(self._snapshot.tensors()):
            raise NonFiniteStateError("a value of the state is not finite")
        return _write(path, self._snapshot, metadata)


def _write(path: Path, snapshot: Snapshot, metadata: dict[str, Any]) -> Written:
    canonical = json.dumps({"format_version": FORMAT_VERSION, **metadata}, sort_keys=True, separators=(",", ":"))
    snapshot.wait()
    parts = (snapshot.header({"wcl": canonical}), snapshot.body())
    digest = hashlib.sha256()

    def write_parts(file: BinaryIO) -> None:
        for part in parts:
            file.write(part)
            digest.update(part)

    write_whole(path, write_parts, before=_pass)
    return Written(path, digest.hexdigest(), sum(map(len, parts)))


def _pass(step: Step) -> None:
    """Pass the failpoint of a step; each name is a literal, because the tests find it in the source."""
    match step:
        case "fsync":
            failpoint("checkpoint.fsync")
        case "rename":
            failpoint("checkpoint.rename")
        case "sync_folder":
            failpoint("checkpoint.sync_folder")


def read(path: Path) -> Checkpoint:
    """Read a checkpoint whole.

    Raises:
        CheckpointError: when the file is absent, damaged or of a format this version does not know.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path.name} does not exist")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        metadata: Any = json.loads(header["wcl"])
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(f"checkpoint {path.name} cannot be read: {error!r}") from error
    version = metadata.get("format_version") if isinstance(metadata, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"checkpoint {path.name} has format_version {version!r}; expected {FORMAT_VERSION}")
    return Checkpoint(tensors, metadata)
