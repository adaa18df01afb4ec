"""Backbones of checkpoints as files of their own, made at the first request and kept under the checkpoint's digest."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

from jobs.storage import sha256_of
from wcl_core.export import backbone_file

# Two threads of this process must not write the same file; two processes write beside, each under its own name.
_LOCKS = [threading.Lock() for _ in range(16)]


def backbone(folder: Path, native: Path, sha256: str) -> tuple[Path, str]:
    """The exported file of the checkpoint with this digest, and the export's own digest.

    Raises:
        wcl_core.export.ExportError, OSError: `native` is no checkpoint, or a file cannot be read or written.
    """
    out, noted = _places(folder, sha256)
    with _LOCKS[int(sha256[:2], 16) % len(_LOCKS)]:
        if not (out.exists() and noted.exists()):
            backbone_file(native, out)
            _write(noted, sha256_of(out))
        return out, noted.read_text(encoding="ascii")


def forget(folder: Path, sha256: str) -> None:
    """Remove what was made of a checkpoint that is deleted."""
    for path in reversed(_places(folder, sha256)):
        path.unlink(missing_ok=True)


def _places(folder: Path, sha256: str) -> tuple[Path, Path]:
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError("not a sha256")
    return folder / f"{sha256}.safetensors", folder / f"{sha256}.sha256"


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.write_text(text, encoding="ascii")
    beside.replace(path)
