"""The writer of packed files: it decodes a folder image by image, so the file may be larger than memory.

The file has no pickle, no times and no paths, so equal folders give equal files. `packed` describes the format.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from wcl_core.data.folder import Corrupt, Reading, decoded
from wcl_core.data.image_file import RULES_VERSION
from wcl_core.data.images import Description, tensor_digest
from wcl_core.data.layout import Entry, Files, list_files
from wcl_core.data.packed import FORMAT_VERSION, MAGIC, describe_packed, mapped
from wcl_core.digests import canonical_json
from wcl_core.files import write_whole
from wcl_core.reporter import Reporter

_ALIGNMENT = 4096
_MAX_REPORT_BYTES = 1 << 20  # in ASCII; `Remarks` limits their number and their lengths
_BLOCK_BYTES = 1 << 26
_CACHED_BLOCK_BYTES = 1 << 23  # smaller, so that all cores check a small dataset


def pack(name: str, folder: Path, out: Path, size: int, max_corrupt_share: float, reporter: Reporter) -> Description:
    """Decode a folder into one packed file, which becomes visible whole.

    Args:
        name: name of the dataset, for messages.
        folder: a tree in one of the layouts of `wcl_core.data.folder`.
        size: side of the stored images, in pixels; the shorter side is scaled to it, then centre-cropped.
        max_corrupt_share: the largest share of undecodable files that is tolerated; these files are left out.
        reporter: receives a warning for each undecodable file, up to a limit.

    Returns:
        The description of the new file.

    Raises:
        DataError: as `wcl_core.data.load`.
        OSError: the disk is full or read-only; no partial file is left.
    """
    files = list_files(name, folder)
    corrupt = Corrupt(name, files.count, max_corrupt_share, reporter)
    reading = Reading(name, files)
    write_whole(out, lambda file: write_packed(file, files, size, corrupt, reading, reporter))
    reading.warn(reporter)
    return describe_packed(name, out)


def packed_bytes(files: Files, size: int) -> int:
    """Return about how large a packed file of a folder becomes."""
    return files.count * (3 * size * size + 4) + _MAX_REPORT_BYTES


def write_packed(
    file: BinaryIO,
    files: Files,
    size: int,
    corrupt: Corrupt,
    reading: Reading,
    reporter: Reporter,
    *,
    is_cached: bool = False,
) -> None:
    """Write a packed file.

    Args:
        file: empty, open for reading and writing.
        corrupt, reading: both of `files`, and new.
        is_cached: add what only the folder knows otherwise: paths of the images, and files that cannot be decoded. The
            digest of the header follows the header, since no job pins it.

    Raises:
        DataError: too many files cannot be decoded, or all files of a split.
        OSError: the disk is full.
    """
    # The numbers of images and the report are known only at the end, so the header gets room for the largest ones.
    block_bytes = _CACHED_BLOCK_BYTES if is_cached else _BLOCK_BYTES
    largest = {which: len(entries) for which, entries in files.splits.items()}
    num_blocks = -(-sum(largest.values()) * (3 * size * size + 4) // block_bytes)
    fields: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "rules_version": RULES_VERSION,
        "report": None,
        "size": size,
        "classes": list(files.classes),
        "counts": largest,
        "split_digests": dict.fromkeys(largest, "0" * 64),
        "source_digest": "0" * 64,
        "block_bytes": block_bytes,
        "blocks": ["0" * 64] * num_blocks,
    }
    if is_cached:
        fields["paths"] = {which: [path for path, _ in entries] for which, entries in files.splits.items()}
    start = -(-(16 + len(_header_text(fields)) + _MAX_REPORT_BYTES) // _ALIGNMENT) * _ALIGNMENT
    file.seek(start)
    blocks = _BlockWriter(file, block_bytes)
    entries = _write_splits(blocks, files, size, corrupt, reading, reporter)
    corrupt.check()
    counts = {which: len(some) for which, some in entries.items()}
    reading.check_not_empty(counts)
    file.flush()
    fields |= {
        "counts": counts,
        "split_digests": _split_digests(Path(file.name), start, size, entries),
        "source_digest": reading.digest,
        "blocks": blocks.finish(),
        "report": reading.report().model_dump(mode="json"),
    }
    if is_cached:
        fields |= {"paths": {which: [path for path, _ in some] for which, some in entries.items()}}
        fields |= {"corrupt": corrupt.facts(), "num_scaled": reading.num_scaled}
    text = _header_text(fields)
    if is_cached:
        text += b"\n" + hashlib.sha256(text).hexdigest().encode()
    file.seek(0)
    file.write(MAGIC + (start - 16).to_bytes(8, "little") + text.ljust(start - 16))


def _write_splits(
    blocks: _BlockWriter, files: Files, size: int, corrupt: Corrupt, reading: Reading, reporter: Reporter
) -> dict[str, list[Entry]]:
    """Write the images as they are decoded, never all in memory, then the labels; return the entries by split."""
    entries: dict[str, list[Entry]] = {which: [] for which in files.splits}
    for which, image, entry in decoded(files, size, corrupt, reading, reporter):
        blocks.write(image.tobytes())
        entries[which].append(entry)
    for some in entries.values():
        blocks.write(np.asarray([label for _, label in some], "<i4").tobytes())
    return entries


def _split_digests(path: Path, start: int, size: int, entries: dict[str, list[Entry]]) -> dict[str, str]:
    """Return the digests that `folder` reports for the same images; each covers the number of images, so read back."""
    digests, offset = {}, start
    for which, some in entries.items():
        shape = (len(some), 3, size, size)
        labels = torch.tensor([label for _, label in some], dtype=torch.int64)
        digests[which] = tensor_digest(mapped(path, offset, shape), labels)
        offset += math.prod(shape)
    return digests


def _header_text(fields: dict[str, Any]) -> bytes:
    return canonical_json(fields).encode()


class _BlockWriter:
    """A writer that passes bytes on and keeps the sha256 of every block."""

    def __init__(self, file: BinaryIO, block_bytes: int) -> None:
        self._file, self._block_bytes = file, block_bytes
        self._digests: list[str] = []
        self._current, self._room = hashlib.sha256(), block_bytes

    def write(self, data: bytes) -> None:
        self._file.write(data)
        rest = memoryview(data)
        while len(rest):
            some, rest = rest[: self._room], rest[self._room :]
            self._current.update(some)
            self._room -= len(some)
            if not self._room:
                self._end_block()

    def _end_block(self) -> None:
        self._digests.append(self._current.hexdigest())
        self._current, self._room = hashlib.sha256(), self._block_bytes

    def finish(self) -> list[str]:
        """Return the digests of all blocks; the last block may be shorter."""
        if self._room < self._block_bytes:
            self._end_block()
        return self._digests
