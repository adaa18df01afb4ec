"""Readers of the files that a run appends to: its spool of records, and its stdout and stderr."""

from __future__ import annotations

import logging
from pathlib import Path

from wcl_core.files import open_regular
from wcl_core.protocol import Record, WarningRecord, parse_record

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_MAX_LINE_BYTES = 1 << 20
_MAX_PROBLEMS = 1_000  # that are kept; a spool with more invalid lines in a row is not worth a warning for each


class Tail:
    """Complete lines that were appended to a file since the last read; an incomplete line waits for its end.

    Args:
        path: the file, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def lines(self) -> list[bytes]:
        """Return the next lines, about a megabyte of them; an empty list when there is no further complete line."""
        complete: list[bytes] = []
        while not complete and (chunk := self._read()):
            *complete, self._rest = (self._rest + chunk).split(b"\n")
            if len(self._rest) > _MAX_LINE_BYTES:  # an endless line is cut rather than kept in memory
                complete, self._rest = [*complete, self._rest], b""
        return complete

    def rest(self) -> bytes:
        """Return the text after the last newline, of a file that no process writes any more."""
        rest, self._rest = self._rest, b""
        return rest

    def _read(self) -> bytes:
        try:
            with open_regular(self._path) as file:
                file.seek(self._offset)
                chunk = file.read(_CHUNK_BYTES)
        except FileNotFoundError:
            return b""
        self._offset += len(chunk)
        return chunk

    def unread(self) -> int:
        """Return the number of bytes that were not read yet."""
        return self.size() - self._offset

    def size(self) -> int:
        """Return the size of the file in bytes; 0 when it does not exist."""
        return self._path.stat().st_size if self._path.exists() else 0

    def restart(self) -> None:
        """Continue from the start of the file, which was emptied."""
        self._offset, self._rest = 0, b""


class Records:
    """The numbered records of a spool, in order and without a gap.

    A line that is not a valid record is replaced by a warning with its number, so it never blocks the records after it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tail = Tail(path)
        self._seq = 0  # of the last record
        self._problems: list[str] = []  # of the invalid lines since then

    def new(self, is_over: bool = False) -> list[Record]:
        """Return the next records.

        Args:
            is_over: the run has ended; invalid lines at the end of the file become a warning too.
        """
        records: list[Record] = []
        lines = self._tail.lines()
        for line in lines:
            try:
                records += self._numbered(parse_record(line))
            except ValueError as error:
                if len(self._problems) < _MAX_PROBLEMS:
                    self._problems.append(str(error)[:1_000])
        if is_over and not lines and self._problems:
            records.append(self._warning())
        return records

    def has_more(self) -> bool:
        """Return whether a part of the spool is unread, as after many invalid lines."""
        return self._tail.unread() > 0

    def _numbered(self, record: Record) -> list[Record]:
        """Return the record, after a warning for each number that invalid lines before it have lost.

        Raises:
            ValueError: the number does not follow.
        """
        last = self._seq + 1 + len(self._problems)
        if not self._seq < record.seq <= last:
            raise ValueError(f"seq is {record.seq}, expected {self._seq + 1}")
        records: list[Record] = [self._warning() for _ in range(self._seq + 1, record.seq)]
        self._seq, self._problems = record.seq, []
        return [*records, record]

    def _warning(self) -> WarningRecord:
        self._seq += 1
        problem = self._problems.pop(0)
        message = f"record {self._seq} of the run is not valid and is not stored: {problem}"[:2000]
        log.error("%s: %s", self._path, message)
        return WarningRecord(seq=self._seq, reason="invalid_record", message=message)


class Output:
    """Lines of stdout and stderr, numbered from 1 and limited in number and on the disk.

    Args:
        path: the file that the run's stdout and stderr append to.
        max_lines: lines to keep; one more line notes that the rest is dropped.
        max_bytes: the file is emptied when it is larger.
    """

    def __init__(self, path: Path, max_lines: int = 10_000, max_bytes: int = 64 << 20) -> None:
        self._path = path
        self._tail = Tail(path)
        self._max_lines, self._max_bytes = max_lines, max_bytes
        self._count = 0
        self._num_dropped = 0  # unread bytes, since the last line

    def new(self, is_over: bool = False) -> list[tuple[int, str]]:
        """Return the next lines with their numbers; with `is_over` also a last line without a newline."""
        self.cap()
        if self._count > self._max_lines:  # further lines are dropped unread
            return []
        lines = self._tail.lines()
        if is_over and not lines and (rest := self._tail.rest()):
            lines = [rest]
        if self._num_dropped:
            lines.insert(0, f"… {self._num_dropped} bytes of output came too fast and are dropped".encode())
            self._num_dropped = 0
        return [numbered for line in lines if (numbered := self._numbered(line)) is not None]

    def cap(self) -> None:
        """Empty the file when it is too large, read or not; the run continues to append to it."""
        if self._tail.size() > self._max_bytes:
            self._num_dropped += self._tail.unread()
            with open_regular(self._path, "r+b") as file:
                file.truncate(0)
            self._tail.restart()

    def _numbered(self, line: bytes) -> tuple[int, str] | None:
        self._count += 1
        if self._count > self._max_lines + 1:
            return None
        if self._count == self._max_lines + 1:
            return self._count, f"… output beyond {self._max_lines} lines is dropped"
        # A progress bar rewrites its line by carriage returns; the last state is what a terminal would show.
        return self._count, line.decode(errors="replace").rstrip("\r").rsplit("\r", 1)[-1]
