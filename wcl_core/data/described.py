"""A cache of folder descriptions: decoding a million files is slow, listing them is not.

The cached description of a folder is valid while its listing (paths, classes, sizes, mtimes and ctimes, and everything
that is left out) stays the same. It is stored only if every file was older than three seconds before the reading began:
a file that changes twice within one tick of the file system's clock keeps its times.

This module does not import torch, and a cached description needs none.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wcl_core import files
from wcl_core.data import file_index
from wcl_core.data.file_index import FileIndex
from wcl_core.data.folder import describe_folder
from wcl_core.data.image_file import RULES_VERSION
from wcl_core.data.images import Description
from wcl_core.data.layout import list_files
from wcl_core.data.samples import Samples
from wcl_core.digests import digest_of
from wcl_core.protocol import DatasetReport

_VERSION = 3  # of layouts, digest and report; another version invalidates every cached description
_PLAIN_FIELDS = ("digest", "counts", "classes", "class_counts")
_FIELDS = {"fingerprint", "samples", "report", "sha256", *_PLAIN_FIELDS}


def describe_folder_cached(
    name: str,
    root: Path,
    cache: Path,
    tell: Callable[[float], None] = lambda _share: None,
    *,
    has_labels: bool = True,
) -> Description:
    """Return what `describe_folder` returns, from the cache if nothing has changed since.

    Of a folder that has changed, only the changed files are read; `file_index` remembers the others.

    Args:
        name: name of the dataset.
        cache: the cache file, created or replaced. If it cannot be read or written, the folder is read.
        tell, has_labels: as for `describe_folder`.

    Raises:
        DataError: as `describe_folder`.
    """
    before, newest = _fingerprint(name, root, has_labels)
    if (kept := _read(name, cache, before)) is not None:
        return kept
    started_ns = time.time_ns()
    index = FileIndex(cache.with_suffix(".files"), root if root.is_dir() else root.parent)
    try:
        description = describe_folder(name, root, index, tell, has_labels=has_labels)
    finally:
        index.close()
    if _fingerprint(name, root, has_labels)[0] == before and newest + file_index.REST_NS < started_ns:
        _write(cache, before, description)
    return description


def _fingerprint(name: str, root: Path, has_labels: bool) -> tuple[str, int]:
    """Return the sha256 of the listing, and the newest time in it, in nanoseconds."""
    digest = hashlib.sha256(os.fsencode(f"{_VERSION}\0{RULES_VERSION}\0{root.absolute()}\0"))
    newest = 0
    listing = list_files(name, root, has_labels=has_labels)
    for which, entries in listing.splits.items():
        for path, label in entries:
            status = (listing.root / path).stat()
            newest = max(newest, status.st_mtime_ns, status.st_ctime_ns)
            facts = (which, path, label, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            digest.update(os.fsencode("\0".join(map(str, facts)) + "\0"))
    digest.update(repr((listing.classes, listing.layout, listing.left_out.list(), listing.odd.list())).encode())
    return digest.hexdigest(), newest


def _read(name: str, cache: Path, fingerprint: str) -> Description | None:
    """Return the description in the cache; None if it is of something else, or damaged."""
    try:
        kept = json.loads(cache.read_text(encoding="utf-8"))
        if kept["fingerprint"] != fingerprint or kept.keys() != _FIELDS or kept.pop("sha256") != digest_of(kept):
            return None
        samples = kept["samples"] and Samples(**kept["samples"] | {"png": base64.b64decode(kept["samples"]["png"])})
        report = kept["report"] and DatasetReport.model_validate(kept["report"])
        facts = {field: kept[field] for field in _PLAIN_FIELDS} | {"classes": tuple(kept["classes"])}
        return Description(name, "folder", **facts, samples=samples, report=report)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _write(cache: Path, fingerprint: str, description: Description) -> None:
    samples, report = description.samples, description.report
    content: dict[str, Any] = {field: getattr(description, field) for field in _PLAIN_FIELDS}
    content["fingerprint"] = fingerprint
    content["samples"] = samples and {**vars(samples), "png": base64.b64encode(samples.png).decode()}
    content["report"] = report and report.model_dump(mode="json")
    content["sha256"] = digest_of(content)
    with contextlib.suppress(OSError):
        files.write_bytes(cache, json.dumps(content).encode())
