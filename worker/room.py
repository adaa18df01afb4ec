"""The check of this worker's disk, and the pause after an attempt that ended for a fault of this worker."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from jobs.settings import Settings
from jobs.status import HELD, Reason
from jobs.workers import Unable
from wcl_core.files import MIN_FREE_BYTES, free_bytes

_FIRST_PAUSE_SECONDS = 4.0
_LONGEST_PAUSE_SECONDS = 600.0
_MORE_ROOM_BYTES = 16 << 20  # ends the pause after a full disk early
_PAUSED = {
    Reason.DISK_FULL: "its last job filled the disk",
    Reason.STORAGE_UNAVAILABLE: "its last job could not use the storage",
    Reason.NO_RESOURCES: "its last job could not start for want of file descriptors, processes or memory",
}


class RoomCheck:
    """The check of the folders that attempts write to.

    Free space alone does not tell whether a job fits.  After an attempt that ended for a fault of this worker, the
    worker takes no job for a pause that doubles with each such end, so that it does not run through the queue.

    Args:
        clock: monotonic seconds.

    Attributes:
        free: bytes of the disk with the least room, as of the last check; None before it.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        storage = (settings.checkpoints_dir,) if settings.storage_url is None else ()
        self._folders = (settings.attempts_dir, *storage)
        self._clock = clock
        self.free: int | None = None
        self._num_faults = 0  # ends in a row
        self._fault_at = -math.inf  # the last of them
        self._pause: tuple[Reason, float] | None = None  # the reason and the end
        self._free_before: int | None = None  # at the beginning of the pause

    def note_end(self, reason: str | None, began: float = math.inf) -> None:
        """Note why an attempt of this worker ended.

        Args:
            reason: of its end.
            began: by the clock.  The good end of an attempt that ran during a fault says nothing about the next job.
        """
        if reason not in HELD:
            if began >= self._fault_at:
                self._num_faults, self._pause = 0, None
            return
        self._fault_at = self._clock()
        pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(self._num_faults, 30))
        self._num_faults += 1
        self._pause, self._free_before = (Reason(reason), self._clock() + pause), None

    def __call__(self) -> Unable | None:
        """Return why no attempt should start now."""
        folders = [_existing(folder) for folder in self._folders]
        self.free = min(map(free_bytes, folders))
        for folder in self._folders:
            if folder.exists() and not folder.is_dir():
                return Unable(Reason.STORAGE_UNAVAILABLE, f"{folder.name} in its data folder is a file, not a folder")
        for folder in folders:
            if not os.access(folder, os.W_OK):
                return Unable(Reason.STORAGE_UNAVAILABLE, f"it cannot write to {folder.name} in its data folder")
            if free_bytes(folder) < MIN_FREE_BYTES:
                return Unable(Reason.DISK_FULL, f"the disk of {folder.name} in its data folder is full")
        return self._after_fault()

    def _after_fault(self) -> Unable | None:
        if self._pause is None:
            return None
        reason, until = self._pause
        free = min(free_bytes(_existing(folder)) for folder in self._folders)
        if self._free_before is None:
            self._free_before = free
        has_more = reason is Reason.DISK_FULL and free >= self._free_before + _MORE_ROOM_BYTES
        if has_more or self._clock() >= until:
            self._pause = None
            return None
        return Unable(reason, f"{_PAUSED[reason]}; it tries again after a pause")


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())
