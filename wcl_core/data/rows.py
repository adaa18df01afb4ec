"""The images of each step: rows of a split in the device's memory, or read from a mapped file one step ahead.

`order` alone decides which rows a step gets, so streaming changes no byte of a run and has no state to save.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from wcl_core.data.images import Split
from wcl_core.distributed import SINGLE, Ranks
from wcl_core.transfer import send

_RESIDENT_BYTES = 1 << 31  # a mapped split of at most this size is copied to the device as a whole
_NUM_BUFFERS = 3  # one is being filled, one is being copied, and the step of one still runs


class Rows:
    """The images of a split, by index.

    A mapped split above 2 GiB stays in its file. A background thread gathers the next step's rows; for CUDA they go
    into pinned memory and are copied without blocking the step.

    Args:
        split: in memory or mapped.
        device: the device of the returned rows.
        ranks: each rank reads its own part of a batch only.
    """

    def __init__(self, split: Split, device: torch.device, ranks: Ranks = SINGLE) -> None:
        self._device, self._ranks = device, ranks
        self.is_streamed = split.is_mapped and split.images.nbytes > _RESIDENT_BYTES
        self._images = split.images if self.is_streamed else split.images.to(device)
        self._buffers = _Buffers(split.images, device)
        self._next: tuple[Tensor, Future[_Gathered]] | None = None

    def __len__(self) -> int:
        return len(self._images)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = self._images.shape[-2:]
        return height, width

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return rows, (B, 3, H, W) uint8 on the device; with several ranks, this rank's part of them.

        Args:
            index: (B,) int64; on the CPU for a streamed split. For the index that `ahead` yielded last, the rows are
                ready or nearly ready.
        """
        if not self.is_streamed:
            return self._images[send(self._own(index), self._device)]
        if self._next is not None and self._next[0] is index:
            return self._buffers.on_device(self._next[1].result())
        return send(self._images[self._own(index)], self._device)

    def _own(self, index: Tensor) -> Tensor:
        return index[self._ranks.own(len(index))]

    def ahead(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield the same indices, while the rows of the next one are gathered."""
        if not self.is_streamed:
            yield from batches
            return
        with ThreadPoolExecutor(1, thread_name_prefix="rows") as pool:
            waiting: tuple[Tensor, Future[_Gathered]] | None = None
            for index in batches:
                following = (index, pool.submit(self._buffers.gather, self._own(index)))
                if waiting is not None:
                    self._next = waiting
                    yield waiting[0]
                waiting = following
            if waiting is not None:
                self._next = waiting
                yield waiting[0]
            self._next = None


@dataclass(frozen=True)
class _Gathered:
    """Rows in host memory, and the number of their buffer."""

    rows: Tensor
    turn: int = 0


class _Buffers:
    """Buffers in host memory that rows pass through; for CUDA they are pinned and used in turn."""

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self._images, self._device = images, device
        self._pinned: list[Tensor | None] = [None] * _NUM_BUFFERS
        self._copied: list[torch.cuda.Event | None] = [None] * _NUM_BUFFERS
        self._turn = 0

    def gather(self, index: Tensor) -> _Gathered:
        """Gather rows in host memory. Only the background thread calls this: it waits until the buffer is free."""
        if self._device.type != "cuda":
            return _Gathered(self._images[index])
        turn, self._turn = self._turn, (self._turn + 1) % _NUM_BUFFERS
        if (event := self._copied[turn]) is not None:
            event.synchronize()
        buffer = self._pinned[turn]
        if buffer is None or len(buffer) != len(index):
            buffer = torch.empty((len(index), *self._images.shape[1:]), dtype=torch.uint8, pin_memory=True)
            self._pinned[turn] = buffer
        return _Gathered(torch.index_select(self._images, 0, index, out=buffer), turn)

    def on_device(self, gathered: _Gathered) -> Tensor:
        """Copy rows to the device without waiting; their buffer is free once the copy is done."""
        if self._device.type != "cuda":
            return gathered.rows
        copied = gathered.rows.to(self._device, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._copied[gathered.turn] = event
        return copied
