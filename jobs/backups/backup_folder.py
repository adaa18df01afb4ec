"""The folder of backups.

    DIR/files/ab/abcd…            a file by its sha256, once for all backups that name it
    DIR/2026-11-29T03-41-12Z/     one backup
        database.sqlite3          or database.pgdump
        manifest.json             written last, so a backup without it was interrupted, and is never restored

A backup reads nothing of earlier ones but the names and sizes of their files.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import BinaryIO, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.checked_files import BadFile, check_bytes, copy_checked
from jobs.errors import JobsError
from wcl_core.files import write_bytes

MANIFEST: Final = "manifest.json"
_FILES, _LOCK = "files", "lock"


class BackupError(JobsError):
    """A backup cannot be made or restored; the message says what to do."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Dump(_Part):
    """The dump of the database.

    Attributes:
        made_with: version of SQLite or of pg_dump.
        major: of the PostgreSQL program that wrote it, and that the reading one must have at least; 0 for SQLite.
    """

    kind: Literal["sqlite", "postgresql"]
    name: str = Field(pattern=r"^[a-z0-9.]+$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int
    made_with: str
    major: int = 0


class Flaw(_Part):
    """A file that the database names, and that the storage did not have as it was registered."""

    storage_key: str
    reason: str


class Manifest(_Part):
    """What one backup holds.

    Attributes:
        version: of the service.
        revision: of the schema.
        storage_id: of the original's storage.
        counts: rows of the dump by table.
        files: size by sha256 of each file that the dump names.
        flaws: of files that are not in the backup.
    """

    format: Literal[1] = 1
    name: str
    version: str
    revision: str
    storage_id: str
    database: Dump
    counts: dict[str, int]
    files: dict[str, int]
    flaws: tuple[Flaw, ...] = ()


class BackupFolder:
    """The backups in one folder.

    Args:
        root: the folder; `new` creates it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    # --- writing -------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: one backup at a time.

        Raises:
            BackupError: another process makes a backup, or the folder cannot be used.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / _LOCK).open("ab")
        except OSError as error:
            raise BackupError(f"the folder {self.root} cannot be used: {error.strerror or error}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BackupError(f"another process makes a backup in {self.root}; wait for its end") from error
            except OSError:  # a file system without locks
                pass
            yield

    def new(self) -> Path:
        """Remove interrupted backups, and make the folder of a new one."""
        for folder in self._folders():
            if not (folder / MANIFEST).exists():
                shutil.rmtree(folder)
        base = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
        name = next(name for number in count(1) if not (self.root / (name := _numbered(base, number))).exists())
        (self.root / name).mkdir()
        return self.root / name

    def add(self, opens: Callable[[], BinaryIO], sha256: str, size: int) -> bool:
        """Copy a file, which is opened for it, unless the folder has it; return whether it was copied.

        Raises:
            BadFile: the file has other bytes, or is absent.
        """
        place = self.place(sha256)
        if place.is_file() and place.stat().st_size == size:
            return False
        with opens() as source:
            copy_checked(source, place, sha256, size)
        return True

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest: from now on the backup is complete."""
        content = manifest.model_dump_json(indent=1) + "\n"
        write_bytes(self.root / manifest.name / MANIFEST, content.encode())

    def prune(self, keep: int) -> int:
        """Remove all but the newest backups, and the files that no remaining one names; return their number.

        Args:
            keep: number of backups that stay, at least 1.
        """
        names = self.names()
        for name in names[:-keep]:
            (self.root / name / MANIFEST).unlink()  # first: what an interruption leaves is no backup
            shutil.rmtree(self.root / name)
        needed = {sha256 for name in names[-keep:] for sha256 in self.read(name).files}
        for path in (self.root / _FILES).glob("*/*"):
            if path.name not in needed:
                path.unlink()
        return len(names[:-keep])

    # --- reading -------------------------------------------------------------------------------------------------

    def place(self, sha256: str) -> Path:
        """Return where the file with a digest is, or would be."""
        return self.root / _FILES / sha256[:2] / sha256

    def open(self, sha256: str) -> BinaryIO:
        """Open the file with a digest; raise FileNotFoundError if the folder has none."""
        return self.place(sha256).open("rb")

    def names(self) -> list[str]:
        """Return the names of the complete backups, oldest first."""
        return sorted(folder.name for folder in self._folders() if (folder / MANIFEST).is_file())

    def read(self, name: str | None = None) -> Manifest:
        """Return the manifest of a backup, by default of the newest complete one.

        Raises:
            BackupError: there is none, it was interrupted, or its manifest is damaged.
        """
        names = self.names()
        if name is None and not names:
            raise BackupError(f"{self.root} holds no complete backup; expected a folder that `wcl backup` has written")
        chosen = names[-1] if name is None else name
        if chosen not in names:
            if chosen in [folder.name for folder in self._folders()]:
                raise BackupError(f"the backup {chosen} was interrupted, so it cannot be restored; choose another one")
            raise BackupError(f"{self.root} has no backup {chosen}; it has {', '.join(names) or 'none'}")
        try:
            manifest = Manifest.model_validate_json((self.root / chosen / MANIFEST).read_bytes())
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is damaged, or of a newer version"
            raise BackupError(f"the manifest of the backup {chosen} cannot be read: {reason}") from error
        if manifest.name != chosen:
            raise BackupError(f"the folder {chosen} holds the backup {manifest.name}; give it its name back")
        return manifest

    def dump_of(self, manifest: Manifest) -> Path:
        """Return the dump after reading it.

        Raises:
            BackupError: it is damaged or absent.
        """
        dump = self.root / manifest.name / manifest.database.name
        try:
            check_bytes(dump, manifest.database.sha256, manifest.database.size)
        except BadFile as error:
            raise BackupError(f"{dump}: {error}; choose another backup") from error
        return dump

    def flaws(self, manifest: Manifest) -> Iterator[str]:
        """Read every file of a backup, and yield a sentence on each one that is damaged or missing."""
        for sha256, size in manifest.files.items():
            try:
                check_bytes(self.place(sha256), sha256, size)
            except BadFile as error:
                yield f"{self.place(sha256)}: {error}; remove it, and the next backup copies it again"

    def _folders(self) -> list[Path]:
        """Return the folders of complete and interrupted backups."""
        try:
            return [path for path in self.root.glob("[0-9]*T*Z*") if path.is_dir()]
        except OSError:
            return []


def _numbered(base: str, number: int) -> str:
    """Return the name of the number-th backup within a second."""
    return base if number == 1 else f"{base}-{number}"
