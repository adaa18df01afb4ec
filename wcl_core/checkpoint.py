"""Checkpoint files: one safetensors file each, no pickle, equal bytes for equal states.

    model/<module>.<parameter>        weights and buffers, e.g. model/backbone.layer1.0.conv1.weight
    optimizer/<parameter>/<slot>      the optimiser's state of that parameter, see `wcl_core.training.optim`
    metrics/window                    sums of the losses since the last log
    metrics/untrained_correct         measured images that the untrained network had right, if it was measured
    metadata["wcl"]                   canonical JSON: format_version, resolved spec, dataset digest, step, epoch, the
                                      environment that exact resume depends on (device, build, memory format), and the
                                      rest of the metrics' state

Times, attempts and parents are not in the file; the database holds them. `wcl_core.training.saving` decides on the
content of a state, and `export` on the content of an exported backbone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wcl_core.config import PretrainSpec, parse_spec
from wcl_core.digests import canonical_json
from wcl_core.failpoints import failpoint
from wcl_core.files import Step, write_whole
from wcl_core.snapshot import Snapshot

FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """The file is missing, damaged, or no checkpoint; the message names the file and the reason."""


class NonFiniteStateError(ArithmeticError):
    """A value of the state is NaN or infinite; such a state is never written."""


@dataclass(frozen=True)
class Written:
    """A checkpoint file that is complete on the disk.

    Attributes:
        path: path of the file.
        sha256: digest of its bytes, 64 hex digits.
        size: size in bytes.
    """

    path: Path
    sha256: str
    size: int


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file: all tensors by name, on the CPU, and the metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with `prefix`, without the prefix."""
        return {name[len(prefix) :]: t for name, t in self.tensors.items() if name.startswith(prefix)}

    @property
    def spec(self) -> PretrainSpec:
        """The spec of the run, upgraded to the current version; newer fields have their current defaults.

        Raises:
            CheckpointError: this version cannot read the spec.
        """
        try:
            spec = parse_spec("pretrain", self.metadata["spec"])
        except (KeyError, TypeError, AttributeError, ValidationError) as error:
            raise CheckpointError(f"the checkpoint's spec cannot be read: {error}") from error
        assert isinstance(spec, PretrainSpec)
        return spec


def is_finite(tensors: dict[str, Tensor]) -> bool:
    """Return whether every floating-point value is finite, with a single host synchronisation."""
    flags = [torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point()]
    return bool(torch.stack(flags).all()) if flags else True


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Written:
    """Write a checkpoint file, which becomes visible whole, see `files.write_whole`.

    Args:
        path: the final name; its folder is created if needed.
        tensors: by name, on any device; copied to the CPU.
        metadata: JSON values.

    Raises:
        OSError: the disk is full or read-only; no partial file is left.
    """
    snapshot = Snapshot()
    snapshot.take(tensors)
    return _write(path, snapshot, metadata)


class BackgroundWriter:
    """A writer of one checkpoint at a time, on its own thread, from a snapshot whose buffer is reused.

    start ── the state is copied; training continues ── is_done? ── finish: the file is complete, or its error
    """

    def __init__(self) -> None:
        self._snapshot = Snapshot()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[Written] | None = None

    def start(
        self,
        path: Path,
        tensors: dict[str, Tensor],
        metadata: dict[str, Any],
        then: Callable[[Written], None] = lambda _: None,
    ) -> None:
        """Copy the tensors and start to write them; call `finish` before the next `start`.

        Args:
            path, tensors, metadata: as for `write`.
            then: called on the writer's thread as soon as the file is complete; `finish` raises its error.
        """
        assert self._running is None, "the snapshot is still being written"
        self._snapshot.take(tensors)
        self._running = self._pool.submit(self._check_and_write, path, metadata, then)

    def is_done(self) -> bool:
        """Return whether `finish` would return at once."""
        return self._running is None or self._running.done()

    def finish(self) -> Written | None:
        """Wait for the started file and return it; None if none was started.

        Raises:
            NonFiniteStateError: a value of the state is not finite; no file was written.
            OSError: as `write`.
        """
        running, self._running = self._running, None
        return None if running is None else running.result()

    def close(self) -> None:
        """Wait for the file that is being written, and end the thread."""
        self._pool.shutdown()

    def _check_and_write(self, path: Path, metadata: dict[str, Any], then: Callable[[Written], None]) -> Written:
        self._snapshot.wait()
        if not is_finite(self._snapshot.tensors()):
            raise NonFiniteStateError("a value of the state is NaN or infinite")
        written = _write(path, self._snapshot, metadata)
        then(written)
        return written


def _write(path: Path, snapshot: Snapshot, metadata: dict[str, Any]) -> Written:
    canonical = canonical_json({"format_version": FORMAT_VERSION, **metadata})
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
    """Read a checkpoint file.

    Raises:
        CheckpointError: the file is absent, damaged or of an unknown format version.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path.name} does not exist")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        metadata: Any = json.loads(header["wcl"])
    except (SafetensorError, KeyError, ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path.name} cannot be read: {error!r}") from error
    version = metadata.get("format_version") if isinstance(metadata, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"checkpoint {path.name} has format_version {version!r}; expected {FORMAT_VERSION}")
    return Checkpoint(tensors, metadata)
