"""The writer of packed files: it decodes a folder image by image, so the file may be larger than memory.

The file has no pickle, no times and no paths, so equal folders give equal files. `packed` describes the format.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from wcl_core.data.folder import Corrupt, Reading, decoded
from wcl_core.data.image_file import RULES_VERSION
from wcl_core.data.images import Description, tensor_digest
from wcl_core.data.layout import Files, list_files
from wcl_core.data.packed import FORMAT_VERSION, MAGIC, describe_packed, mapped
from wcl_core.digests import canonical_json
from wcl_core.files import write_whole
from wcl_core.reporter import Reporter

_ALIGNMENT = 4096
_MAX_REPORT_BYTES = 1 << 20  # in ASCII; `Remarks` limits their number and their lengths
_BLOCK_BYTES = 1 << 26


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
    corrupt = Corrupt(name, files, max_corrupt_share, reporter)
    reading = Reading(name, files)
    write_whole(out, lambda file: _write(file, files, size, corrupt, reading))
    reading.warn(reporter)
    return describe_packed(name, out)


def _write(file: BinaryIO, files: Files, size: int, corrupt: Corrupt, reading: Reading) -> None:
    # The numbers of images and the report are known only at the end, so the header gets room for the largest ones.
    largest = {which: len(entries) for which, entries in files.splits.items()}
    num_blocks = -(-sum(largest.values()) * (3 * size * size + 4) // _BLOCK_BYTES)
    digests = dict.fromkeys(largest, "0" * 64)
    text = _header_text(files.classes, size, largest, digests, "0" * 64, ["0" * 64] * num_blocks, None)
    start = -(-(16 + len(text) + _MAX_REPORT_BYTES) // _ALIGNMENT) * _ALIGNMENT
    file.seek(start)
    blocks = _BlockWriter(file)
    labels = _write_splits(blocks, files, size, corrupt, reading)
    corrupt.check()
    counts = {which: len(some) for which, some in labels.items()}
    reading.check_not_empty(counts)
    file.flush()
    digests = _split_digests(Path(file.name), start, size, labels)
    report = reading.report().model_dump(mode="json")
    text = _header_text(files.classes, size, counts, digests, reading.digest, blocks.finish(), report)
    file.seek(0)
    file.write(MAGIC + (start - 16).to_bytes(8, "little") + text.ljust(start - 16))


def _write_splits(
    blocks: _BlockWriter, files: Files, size: int, corrupt: Corrupt, reading: Reading
) -> dict[str, list[int]]:
    """Write the images as they are decoded, never all in memory, then the labels; return the labels by split."""
    labels: dict[str, list[int]] = {}
    for which in files.splits:
        labels[which] = []
        for image, (_, label) in decoded(files, which, size, corrupt, reading):
            blocks.write(image.numpy().tobytes())
            labels[which].append(label)
    for some in labels.values():
        blocks.write(np.asarray(some, "<i4").tobytes())
    return labels


def _split_digests(path: Path, start: int, size: int, labels: dict[str, list[int]]) -> dict[str, str]:
    """Return the digests that `folder` reports for the same images; each covers the number of images, so read back."""
    digests, offset = {}, start
    for which, some in labels.items():
        shape = (len(some), 3, size, size)
        digests[which] = tensor_digest(mapped(path, offset, shape), torch.tensor(some, dtype=torch.int64))
        offset += math.prod(shape)
    return digests


def _header_text(
    classes: Sequence[str],
    size: int,
    counts: dict[str, int],
    split_digests: dict[str, str],
    source_digest: str,
    blocks: Sequence[str],
    report: dict[str, Any] | None,
) -> bytes:
    fields = {
        "format_version": FORMAT_VERSION,
        "rules_version": RULES_VERSION,
        "report": report,
        "size": size,
        "classes": list(classes),
        "counts": counts,
        "split_digests": split_digests,
        "source_digest": source_digest,
        "block_bytes": _BLOCK_BYTES,
        "blocks": list(blocks),
    }
    return canonical_json(fields).encode()


class _BlockWriter:
    """A writer that passes bytes on and keeps the sha256 of every block."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digests: list[str] = []
        self._current, self._room = hashlib.sha256(), _BLOCK_BYTES

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
        self._current, self._room = hashlib.sha256(), _BLOCK_BYTES

    def finish(self) -> list[str]:
        """Return the digests of all blocks; the last block may be shorter."""
        if self._room < _BLOCK_BYTES:
            self._end_block()
        return self._digests
