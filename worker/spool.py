"""Reading what a run appends: its spool of records, and its stdout and stderr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20
_MAX_LINE_BYTES = 1 << 20


class Tail:
    """Whole lines appended to a file since the last look; half a line waits for its end.

    Args:
        path: the file, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def lines(self) -> list[bytes]:
        """The next lines, about a megabyte of them; an empty list when there is no further whole line."""
        whole: list[bytes] = []
        while not whole and (chunk := self._read()):
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            if len(self._rest) > _MAX_LINE_BYTES:  # an endless line is cut rather than kept in memory
                whole, self._rest = [*whole, self._rest], b""
        return whole

    def rest(self) -> bytes:
        """What stands behind the last newline; for a file that nobody writes any more."""
        rest, self._rest = self._rest, b""
        return rest

    def _read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read(_CHUNK_BYTES)
        except FileNotFoundError:
            return b""
        self._offset += len(chunk)
        return chunk

    def unread(self) -> int:
        """Bytes of the file that were not read yet."""
        return self.size() - self._offset

    def size(self) -> int:
        """Bytes of the file."""
        return self._path.stat().st_size if self._path.exists() else 0

    def restart(self) -> None:
        """The file was emptied: go on from its start."""
        self._offset, self._rest = 0, b""


class Records:
    """The numbered records of `report.jsonl`, in order."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)

    def new(self) -> list[dict[str, Any]]:
        """The next records.

        Raises:
            ValueError: a line that is no record; the file is written by our own process, so this is a defect.
        """
        return [json.loads(line) for line in self._tail.lines()]


class Output:
    """Lines of stdout and stderr, numbered from 1 and capped: in the database, and on the disk.

    Args:
        path: the file that the run's stdout and stderr append to.
        max_lines: what is kept; one more line says that the rest was dropped.
        max_bytes: the file is emptied when it grows beyond this.
    """

    def __init__(self, path: Path, max_lines: int = 10_000, max_bytes: int = 64 << 20) -> None:
        self._path = path
        self._tail = Tail(path)
        self._max_lines, self._max_bytes = max_lines, max_bytes
        self._count = 0
        self._num_lost = 0  # bytes that were never read, since the last line

    def new(self, is_over: bool = False) -> list[tuple[int, str]]:
        """The next lines with their numbers; with `is_over` also a last one that lacks its newline."""
        self.cap()
        if self._count > self._max_lines:  # whatever still comes is dropped unread
            return []
        lines = self._tail.lines()
        if is_over and not lines and (rest := self._tail.rest()):
            lines = [rest]
        if self._num_lost:
            lines.insert(0, f"… {self._num_lost} bytes of output came too fast and are dropped".encode())
            self._num_lost = 0
        return [numbered for line in lines if (numbered := self._numbered(line)) is not None]

    def cap(self) -> None:
        """Empty the file when it has grown too large, read or not; the run goes on appending to it."""
        if self._tail.size() > self._max_bytes:
            self._num_lost += self._tail.unread()
            with self._path.open("r+b") as file:
                file.truncate(0)
            self._tail.restart()

    def _numbered(self, line: bytes) -> tuple[int, str] | None:
        self._count += 1
        if self._count > self._max_lines + 1:
            return None
        if self._count == self._max_lines + 1:
            return self._count, f"… output beyond {self._max_lines} lines is dropped"
        # A progress bar rewrites its line by carriage returns: its last state is what a reader would see.
        return self._count, line.decode(errors="replace").rstrip("\r").rsplit("\r", 1)[-1]
