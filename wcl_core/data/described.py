"""A cache of folder descriptions: hashing a million files is slow, listing them is not.

A cached description is valid while the folder's listing (paths, classes, sizes, mtimes and ctimes) stays the same. It
is stored only if every file was older than three seconds before the hashing began: a file that changes twice within one
tick of the file system's clock keeps its times.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from wcl_core import files
from wcl_core.data.folder import describe_folder, folder_samples, list_files
from wcl_core.data.images import Description
from wcl_core.data.samples import Samples

_VERSION = 1  # of the layouts and of the digest; another version invalidates every cached description
_KEPT = ("digest", "counts", "classes", "class_counts")
_REST_NS = 3_000_000_000  # more than the coarsest clock of a file system, two seconds


def describe_folder_cached(name: str, root: Path, cache: Path) -> Description:
    """Return what `describe_folder` returns, from the cache if nothing has changed since.

    Args:
        name: name of the dataset.
        cache: the cache file, created or replaced. If it cannot be read or written, the folder is hashed.

    Raises:
        DataError: as `describe_folder`.
    """
    before, newest = _fingerprint(name, root)
    if (kept := _read(cache, before)) is not None:
        if "samples" not in kept:  # cached by a version without samples
            kept["samples"] = _as_json(folder_samples(name, root))
            _write(cache, kept)
        facts = {field: kept[field] for field in _KEPT}
        return Description(
            name, "folder", **facts | {"classes": tuple(kept["classes"]), "samples": _from_json(kept["samples"])}
        )
    started_ns = time.time_ns()
    description = describe_folder(name, root)
    if _fingerprint(name, root)[0] == before and newest + _REST_NS < started_ns:
        facts = {field: getattr(description, field) for field in _KEPT}
        _write(cache, {"fingerprint": before, **facts, "samples": _as_json(description.samples)})
    return description


def _as_json(samples: Samples | None) -> dict[str, Any] | None:
    return None if samples is None else {**vars(samples), "png": base64.b64encode(samples.png).decode()}


def _from_json(kept: dict[str, Any] | None) -> Samples | None:
    return None if kept is None else Samples(**kept | {"png": base64.b64decode(kept["png"])})


def _fingerprint(name: str, root: Path) -> tuple[str, int]:
    """Return the sha256 of the listing, and the newest time in it, in nanoseconds."""
    digest = hashlib.sha256(os.fsencode(f"{_VERSION}\0{root.absolute()}\0"))
    newest = 0
    for which, entries in list_files(name, root).splits.items():
        for path, label in entries:
            status = (root / path).stat()
            newest = max(newest, status.st_mtime_ns, status.st_ctime_ns)
            facts = (which, path, label, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            digest.update(os.fsencode("\0".join(map(str, facts)) + "\0"))
    return digest.hexdigest(), newest


def _read(cache: Path, fingerprint: str) -> dict[str, Any] | None:
    try:
        kept = json.loads(cache.read_text())
        is_same = kept["fingerprint"] == fingerprint and set(_KEPT) <= kept.keys()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kept if is_same else None


def _write(cache: Path, content: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        files.write_bytes(cache, json.dumps(content).encode())
