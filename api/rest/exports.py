"""Exported backbones of checkpoints: created at the first request, and stored under the digest of the bytes read.

DIGEST.safetensors    the backbone
DIGEST.sha256         `2`, digest and size of that file; another first word is of an older version, which exported
                      without a comparison of the checkpoint's bytes
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import select

from jobs.checked_files import CheckedFiles, Damaged, Stamp
from jobs.database import Database
from jobs.models import Checkpoint
from jobs.storage import sha256_of
from wcl_core.export import ExportError, copy_backbone
from wcl_core.files import write_bytes

_BATCH = 500  # digests in one query
_COPIED_BYTES = 1 << 20
_DIGEST = re.compile("[0-9a-f]{64}")
_VERSION = "2"
_EXPORTED = CheckedFiles()

# Two threads of this process must not write the same file; two processes write beside, each under its own name.
_LOCKS = [threading.Lock() for _ in range(16)]


def backbone(folder: Path, native: BinaryIO, sha256: str, check: Callable[[], None]) -> tuple[BinaryIO, str]:
    """Return the exported file of a checkpoint, open, and the digest of its bytes.

    Args:
        folder: where exports are.
        native: the checkpoint's file, open, whose bytes were just compared with the digest.
        sha256: the digest.
        check: is called again and again while the export is made; an error that it raises ends it.

    Raises:
        wcl_core.export.ExportError, OSError: `native` is no checkpoint, or a file cannot be read or written.
    """
    out, noted = _places(folder, sha256)
    with _LOCKS[int(sha256[:2], 16) % len(_LOCKS)]:
        if (kept := _kept(out, noted)) is not None:
            return kept
        noted.unlink(missing_ok=True)
        with _on_disk(native, folder) as file:
            before = Stamp.of(file)
            copy_backbone(file, out, check)
            if Stamp.of(file)[:4] != before[:4]:  # not the time of the inode, which a deletion changes, too
                out.unlink()
                raise ExportError("its file changed while it was read")
        write_bytes(noted, f"{_VERSION} {sha256_of(out)} {out.stat().st_size}".encode("ascii"))
        if (made := _kept(out, noted)) is None:
            raise OSError(f"the export {out.name} does not have the bytes that were written")
        return made


@contextmanager
def _on_disk(native: BinaryIO, folder: Path) -> Iterator[BinaryIO]:
    """Yield a file with the bytes of another one, which may be of a bucket and is compared with its digest then.

    Raises:
        ExportError: the bytes are not the registered ones.
    """
    if isinstance(native, BufferedReader):
        yield native
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            shutil.copyfileobj(native, file, _COPIED_BYTES)
        except Damaged as error:
            raise ExportError(str(error)) from error
        file.seek(0)
        yield file


def _kept(out: Path, noted: Path) -> tuple[BinaryIO, str] | None:
    """Return a complete export whose bytes are those that were written; None if it has to be made."""
    try:
        version, digest, size = noted.read_text(encoding="ascii").split()
        if version != _VERSION:
            return None
        os.utime(noted)  # the time of its last use
        return _EXPORTED.open(out, digest, int(size)), digest
    except (FileNotFoundError, ValueError, Damaged):
        return None


def sweep(database: Database, folder: Path, days: float = math.inf) -> None:
    """Remove the exports of checkpoints that users or retention have deleted, also with their job, and unused ones.

    Args:
        database: has the checkpoints.
        folder: where exports are.
        days: an export without a request for so long is removed; the next request makes it again.

    Raises:
        OSError, DBAPIError: a file cannot be removed, or the database does not respond; the next collection retries.
    """
    digests = sorted({path.stem for path in folder.glob("*.s*") if _DIGEST.fullmatch(path.stem)})
    for start in range(0, len(digests), _BATCH):
        batch = digests[start : start + _BATCH]
        claimed = select(Checkpoint.sha256).where(Checkpoint.sha256.in_(batch), Checkpoint.deleted_at.is_(None))
        with database.read() as session:
            orphans = set(batch) - set(session.execute(claimed).scalars())
        orphans |= {sha256 for sha256 in batch if _age(_places(folder, sha256)[1]) > days}
        for sha256 in orphans:
            for path in reversed(_places(folder, sha256)):
                path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    """Return the days since a file was written or used; 0 for one that is absent."""
    try:
        return (time.time() - path.stat().st_mtime) / 86_400
    except FileNotFoundError:
        return 0.0


def _places(folder: Path, sha256: str) -> tuple[Path, Path]:
    if not _DIGEST.fullmatch(sha256):
        raise ValueError("not a sha256")
    return folder / f"{sha256}.safetensors", folder / f"{sha256}.sha256"
