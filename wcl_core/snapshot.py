"""A copy of a run's state in the layout of a safetensors file, in one buffer that is reused.

Taking a snapshot is one pass over memory, and only the first one allocates. Training continues right after it.
`checkpoint` writes the snapshot to a file, which takes many times as long.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# The names of the format, in the order of the safetensors library, widest type first: this aligns each tensor.
_DTYPE_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPE_ORDER = {dtype: place for place, dtype in enumerate(_DTYPE_NAMES)}
_ALIGNMENT = 8

_Layout = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]


@dataclass(frozen=True)
class _Part:
    """The place of one tensor in the buffer, in bytes, and a view of the buffer as that tensor."""

    start: int
    stop: int
    tensor: Tensor


class Snapshot:
    """The copies of the latest `take`, on the CPU."""

    def __init__(self) -> None:
        self._layout: _Layout = ()
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._parts: dict[str, _Part] = {}
        self._copied: torch.cuda.Event | None = None

    def take(self, tensors: dict[str, Tensor]) -> None:
        """Copy the tensors; the caller may change its tensors right after.

        From a GPU, the copies are only queued, before the caller's next work on the GPU; `wait` waits for them.

        Args:
            tensors: by name, on any device, in any memory layout.

        Raises:
            KeyError: the format has no name for a data type.
        """
        ordered = sorted(tensors.items(), key=lambda item: (_DTYPE_ORDER[item[1].dtype], item[0]))
        layout = tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in ordered)
        is_gpu = any(tensor.is_cuda for tensor in tensors.values())
        if layout != self._layout:
            self._allocate(layout, is_gpu)
        for name, tensor in ordered:
            _copy(tensor.detach(), self._parts[name].tensor)
        if is_gpu:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> None:
        """Wait until the copies from a GPU have arrived."""
        if self._copied is not None:
            self._copied.synchronize()

    def tensors(self) -> dict[str, Tensor]:
        """Return the copies by name; they change at the next `take`."""
        return {name: part.tensor for name, part in self._parts.items()}

    def header(self, metadata: dict[str, str]) -> bytes:
        """Return the bytes before the body: the length of the header, the header, and spaces up to the alignment."""
        entries: dict[str, object] = {"__metadata__": metadata}
        for name, dtype, shape in self._layout:
            part = self._parts[name]
            entries[name] = {
                "dtype": _DTYPE_NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [part.start, part.stop],
            }
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    def body(self) -> memoryview:
        """Return the bytes after the header, without a copy."""
        values: Any = self._buffer.numpy()  # in the types of Python 3.11, an array is no buffer
        return memoryview(values)

    def _allocate(self, layout: _Layout, is_pinned: bool) -> None:
        sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in layout]
        self._parts = {}  # frees the old buffer before the new one is allocated
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._buffer = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=is_pinned)
        self._layout, start = layout, 0
        for (name, dtype, shape), size in zip(layout, sizes, strict=True):
            view = self._buffer[start : start + size].view(dtype).view(shape)
            self._parts[name] = _Part(start, start + size, view)
            start += size


def _copy(source: Tensor, target: Tensor) -> None:
    if source.is_cuda or not source.is_contiguous():
        target.copy_(source, non_blocking=True)
        return
    # numpy copies on this thread. torch would split each tensor over threads, and wait for them on a busy machine.
    np.copyto(_as_bytes(target), _as_bytes(source))


def _as_bytes(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy()
