"""The index of a folder's files: what each file was when it was last read, so that it is read once.

A SQLite file of one table.  A file counts as unchanged if its size, times and inode are the same, and if it had rested
for three seconds when it was read: a file that changes twice within one tick of the file system's clock keeps its
times.  Each row has its own checksum.  A damaged index is made anew, and a killed process loses a second of work.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from dataclasses import asdict
from pathlib import Path

from wcl_core.data.decoding import Read
from wcl_core.data.image_file import RULES_VERSION, Facts

REST_NS = 3_000_000_000  # more than the coarsest clock of a file system, two seconds
_VERSION = 1
_COMMIT_SECONDS = 1.0


class FileIndex:
    """The index of one folder.

    Args:
        place: the SQLite file; if it cannot be used, nothing is remembered.
        root: the folder; the index of another folder or of other rules is emptied.
    """

    def __init__(self, place: Path, root: Path) -> None:
        self._root = root
        self._committed_at = time.monotonic()
        try:
            self._database = _opened(place, root)
        except (sqlite3.Error, OSError):
            self._database = _opened(None, root)

    def close(self) -> None:
        """Store everything."""
        with contextlib.suppress(sqlite3.Error):  # a full disk
            self._database.commit()
        self._database.close()

    def get(self, path: str) -> Read | None:
        """Return a file as it was read; None if it has changed since, or was not read."""
        try:
            row = self._database.execute(
                "SELECT state, digest, facts, error, checksum FROM files WHERE path = ?", (os.fsencode(path),)
            ).fetchone()
            if row is None or row[0] != self._state(path)[0] or row[4] != _checksum(path, *row[:4]):
                return None
            return Read(row[1], _facts(row[2]), row[3])
        except (sqlite3.Error, OSError, ValueError, TypeError):
            return None

    def add(self, path: str, read: Read, started_ns: int) -> None:
        """Remember a file.

        Args:
            started_ns: the wall clock before the file was read.
        """
        with contextlib.suppress(sqlite3.Error, OSError):
            state, newest = self._state(path)
            if newest + REST_NS >= started_ns:
                return
            facts = "" if read.facts is None else json.dumps(asdict(read.facts))
            row = (state, read.digest, facts, read.error)
            statement = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)"
            self._database.execute(statement, (os.fsencode(path), *row, _checksum(path, *row)))
            if time.monotonic() - self._committed_at > _COMMIT_SECONDS:
                self._committed_at = time.monotonic()
                self._database.commit()

    def _state(self, path: str) -> tuple[str, int]:
        status = (self._root / path).stat()
        facts = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        return " ".join(map(str, facts)), max(status.st_mtime_ns, status.st_ctime_ns)


def _opened(place: Path | None, root: Path) -> sqlite3.Connection:
    """Return the database, empty unless it is of this folder and of these rules."""
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
    owner = hashlib.sha256(os.fsencode(f"{_VERSION}\0{RULES_VERSION}\0{root.absolute()}")).hexdigest()
    try:
        return _with_table(sqlite3.connect(place or ":memory:"), owner)
    except sqlite3.DatabaseError:
        if place is None or not place.exists():
            raise
        place.unlink()
        return _with_table(sqlite3.connect(place), owner)


def _with_table(database: sqlite3.Connection, owner: str) -> sqlite3.Connection:
    database.execute("CREATE TABLE IF NOT EXISTS owner (id TEXT)")
    if database.execute("SELECT id FROM owner").fetchall() != [(owner,)]:
        database.executescript("DROP TABLE IF EXISTS files; DELETE FROM owner;")
        database.execute("INSERT INTO owner VALUES (?)", (owner,))
    database.execute(
        "CREATE TABLE IF NOT EXISTS files"
        " (path BLOB PRIMARY KEY, state TEXT, digest BLOB, facts TEXT, error TEXT, checksum BLOB) WITHOUT ROWID"
    )
    database.commit()
    return database


def _checksum(path: str, state: str, digest: bytes, facts: str, error: str) -> bytes:
    content = b"\0".join([os.fsencode(path), state.encode(), digest.hex().encode(), facts.encode(), error.encode()])
    return hashlib.sha256(content).digest()[:16]


def _facts(text: str) -> Facts | None:
    fields = json.loads(text) if text else None
    return fields and Facts(**fields | {"notes": tuple(fields["notes"])})
