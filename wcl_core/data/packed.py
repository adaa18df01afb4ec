"""Packed datasets: one file with all images decoded, written once from a folder, then mapped into memory.

    magic           8 bytes, WCLPACK1
    length          8 bytes, little endian: bytes of the header that follows, padding included
    header          canonical JSON, padded with spaces so that the images begin at a multiple of 4,096
    images          per split, one after the other: (N, 3, S, S) uint8, row by row
    labels          per split: (N,) int32, little endian

The header lists the sha256 of every block of 64 MiB. The dataset's digest is the sha256 of the header without its
padding, so the digest and the blocks together check every byte. `packing` writes such files.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wcl_core.data.cache import Cache, HeldFile, Mark
from wcl_core.data.image_file import RULES_VERSION
from wcl_core.data.images import DataError, Description, ImageData, Split, class_counts
from wcl_core.data.samples import samples_of_images, shown_images
from wcl_core.limits import num_threads
from wcl_core.protocol import DatasetReport

if TYPE_CHECKING:  # a description never loads torch
    from torch import Tensor

_Array = np.ndarray[Any, Any]
FORMAT_VERSION = 2
MAGIC = b"WCLPACK1"
_MAX_HEADER_BYTES = 1 << 28
_MAX_BLOCK_BYTES = 1 << 30
_SPLITS = ("train", "test", "unlabelled")  # in the file's order; the last may be absent


@dataclass(frozen=True)
class _Part:
    """One split within the file; offsets count from the first byte of the images."""

    count: int
    images: int
    labels: int


@dataclass(frozen=True)
class _Header:
    """The header of a packed file, and the offset of the first image."""

    size: int
    classes: tuple[str, ...]
    parts: dict[str, _Part]
    split_digests: dict[str, str]
    block_bytes: int
    blocks: tuple[str, ...]
    digest: str
    start: int
    report: DatasetReport

    @property
    def end(self) -> int:
        """The size of the whole file, in bytes."""
        return self.start + max(part.labels + 4 * part.count for part in self.parts.values())


def load_packed(name: str, path: Path, image_size: int, cache: Cache | None = None) -> ImageData:
    """Map a packed file, after checking every byte against the header on all cores.

    Args:
        cache: remembers that the file was checked, so that not every load reads it.

    Raises:
        DataError: the file is absent, damaged or of another format, or its images are smaller than `image_size`.
    """
    header = _read_header(name, path)
    if header.size < image_size:
        raise DataError(
            f"dataset {name}: it is packed at {header.size} pixels, but data.image_size = {image_size}; "
            f"set data.image_size to at most {header.size} or pack the folder again with --size {image_size}"
        )
    _check_unless_marked(name, path, header, None if cache is None else cache.mark(header.digest))
    _check_labels(name, path, header)
    splits = {which: _at_side(_map(path, header, which), image_size) for which in header.parts}
    return ImageData(name, splits["train"], splits["test"], header.classes, header.digest, splits.get("unlabelled"))


def _at_side(split: Split, side: int) -> Split:
    """Return the split with plain images of `side` pixels; its digest changes if these are not the stored images."""
    if split.images.shape[-1] == side:
        return split
    return replace(split, side=side, digest=hashlib.sha256(f"{split.digest} at {side}".encode()).hexdigest())


def _check_unless_marked(name: str, path: Path, header: _Header, mark: Mark | None) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"dataset {name}: packed file {path}: {error.strerror}") from error
    if mark is None or not mark.holds(status):
        _check_blocks(name, path, header)
        if mark is not None:
            mark.set(status)


def load_cached(name: str, path: Path, file: HeldFile, *, is_checked: bool = False) -> tuple[ImageData, dict[str, Any]]:
    """Map a file of the cache, after checking every byte; also return the fields of its header.

    Args:
        file: the open file of the path; it is held for as long as the images are used.
        is_checked: its bytes need no check.

    Raises:
        DataError: the file is damaged, or of another version.
    """
    if sys.platform == "linux":
        path = Path(f"/proc/self/fd/{file.fileno()}")  # also when another process has replaced it
    fields: dict[str, Any] = {}
    header = _read_header(name, path, fields)
    if not is_checked:
        _check_blocks(name, path, header)
    _check_labels(name, path, header)
    splits = {
        which: replace(_map(path, header, which), files=tuple(fields["paths"][which]), held=file)
        for which in header.parts
    }
    digest = str(fields["source_digest"])
    return ImageData(name, splits["train"], splits["test"], header.classes, digest, splits.get("unlabelled")), fields


def describe_packed(name: str, path: Path) -> Description:
    """Return the description of a packed file; of its images only the samples are read.

    The blocks that hold the labels and the samples are compared with the header.
    """
    header = _read_header(name, path)
    _check_blocks(name, path, header, _blocks_of_labels(header))
    _check_labels(name, path, header)
    counts = {which: part.count for which, part in header.parts.items()}
    labels = {which: _labels(path, header, which).tolist() for which in _SPLITS[:2]}
    by_class = class_counts(labels, len(header.classes))
    which, num_rows = ("train", len(header.classes)) if counts["train"] else (_SPLITS[2], 1)
    rows = np.maximum(_labels(path, header, which), 0)  # unlabelled images are one row
    shown = shown_images(header.size, rows, num_rows)
    _check_blocks(name, path, header, _blocks_of_images(header, which, shown))
    images = _mapped(path, header.start + header.parts[which].images, _shape(header, which))
    samples = samples_of_images(images, rows, num_rows)
    return Description(
        name,
        "packed",
        header.digest,
        counts,
        header.classes,
        by_class,
        image_size=header.size,
        samples=samples,
        report=header.report,
    )


def packed_train_labels(name: str, path: Path) -> _Array:
    """Return the classes of the train images: (N,) int64."""
    header = _read_header(name, path)
    _check_blocks(name, path, header, _blocks_of_labels(header))
    return _labels(path, header, "train")


def _check_labels(name: str, path: Path, header: _Header) -> None:
    """Raise if a label is not the place of a class; the images of the unlabelled split have -1."""
    for which in header.parts:
        labels = _labels(path, header, which)
        low, high = (-1, -1) if which == _SPLITS[2] else (0, len(header.classes) - 1)
        if len(labels) and (int(labels.min()) < low or int(labels.max()) > high):
            raise DataError(
                f"dataset {name}: {path} has a label outside of {low} to {high} in its {which} split; pack it again"
            )


def _map(path: Path, header: _Header, which: str) -> Split:
    import torch

    images = mapped(path, header.start + header.parts[which].images, _shape(header, which))
    labels = torch.from_numpy(_labels(path, header, which))
    return Split(images, labels, header.split_digests[which], is_mapped=True)


def _shape(header: _Header, which: str) -> tuple[int, ...]:
    return (header.parts[which].count, 3, header.size, header.size)


def _labels(path: Path, header: _Header, which: str) -> _Array:
    part = header.parts[which]
    with path.open("rb") as file:
        file.seek(header.start + part.labels)
        return np.frombuffer(file.read(4 * part.count), "<i4").astype(np.int64)


def _mapped(path: Path, offset: int, shape: tuple[int, ...]) -> _Array:
    if not shape[0]:  # an empty range cannot be mapped
        return np.empty(shape, np.uint8)
    return np.memmap(path, np.uint8, "r", offset, shape)


def mapped(path: Path, offset: int, shape: tuple[int, ...]) -> Tensor:
    """Return bytes of a file as a read-only uint8 tensor; the bytes are read when they are used."""
    import torch

    with warnings.catch_warnings():
        # torch has no read-only tensors and warns. A private writable mapping would count as memory of this process,
        # and would fail for files larger than the machine's memory; nothing here writes.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(_mapped(path, offset, shape))


# --- reading -------------------------------------------------------------------------------------------------------


def _read_header(name: str, path: Path, cached: dict[str, Any] | None = None) -> _Header:
    """Return the header; for a file of the cache, check the digest of the header, and add all fields to `cached`."""
    try:
        if path.exists() and not path.is_file():  # a FIFO would be waited for
            raise ValueError("it is no regular file")
        with path.open("rb") as file:
            magic, length = file.read(8), int.from_bytes(file.read(8), "little")
            if magic != MAGIC or not 2 <= length <= _MAX_HEADER_BYTES:
                raise ValueError("its first bytes are not those of a packed dataset")
            text = file.read(length).rstrip(b" ")
            size = os.fstat(file.fileno()).st_size
        if cached is not None:
            text, _, digest = text.rpartition(b"\n")
            if hashlib.sha256(text).hexdigest().encode() != digest:
                raise ValueError("its header does not have its digest")
        fields = json.loads(text)
        if cached is not None:
            cached |= fields
        versions = fields["format_version"], fields.get("rules_version", 1)
        if versions != (FORMAT_VERSION, RULES_VERSION):
            raise DataError(
                f"dataset {name}: {path} was packed by other rules for pixels (version {versions[1]}, expected "
                f"{RULES_VERSION}); pack the folder again: python -m wcl_core pack {name} FOLDER {path.name} "
                f"--size {fields.get('size')}"
            )
        header = _parsed(fields, hashlib.sha256(text).hexdigest(), 16 + length)
    except OSError as error:
        raise DataError(f"dataset {name}: packed file {path}: {error.strerror or error}") from error
    except DataError:
        raise
    except Exception as error:  # a damaged or hostile header raises anything, a RecursionError among others
        raise DataError(f"dataset {name}: {path} is not a packed dataset: {type(error).__name__}: {error}") from error
    if size != header.end:
        raise DataError(f"dataset {name}: {path} has {size} bytes, but its header says {header.end}; pack it again")
    return header


def _parsed(fields: dict[str, Any], digest: str, start: int) -> _Header:
    size, counts = int(fields["size"]), {which: int(fields["counts"][which]) for which in _SPLITS[:2]}
    if _SPLITS[2] in fields["counts"]:
        counts[_SPLITS[2]] = int(fields["counts"][_SPLITS[2]])
    is_labelled = counts["train"] or counts["test"] or not fields["counts"].get(_SPLITS[2])
    if min(size, int(fields["block_bytes"]), *(counts.values() if is_labelled else ())) < 1:
        raise ValueError("its header has an empty split")
    if int(fields["block_bytes"]) > _MAX_BLOCK_BYTES:
        raise ValueError(f"its blocks have {fields['block_bytes']} bytes; expected at most {_MAX_BLOCK_BYTES}")
    image_offsets = list(itertools.accumulate((3 * size * size * count for count in counts.values()), initial=0))
    label_offsets = itertools.accumulate((4 * count for count in counts.values()), initial=image_offsets[-1])
    places = zip(counts.items(), image_offsets, label_offsets, strict=False)
    return _Header(
        size=size,
        classes=tuple(map(str, fields["classes"])),
        parts={which: _Part(count, images, labels) for (which, count), images, labels in places},
        split_digests={which: str(fields["split_digests"][which]) for which in counts},
        block_bytes=int(fields["block_bytes"]),
        blocks=tuple(fields["blocks"]),
        digest=digest,
        start=start,
        report=DatasetReport.model_validate(fields["report"]),
    )


def _blocks_of(header: _Header, first: int, end: int) -> Iterable[int]:
    """Return the numbers of the blocks that hold these bytes, counted from the first byte of the images."""
    return range(first // header.block_bytes, -(-end // header.block_bytes))


def _blocks_of_labels(header: _Header) -> set[int]:
    parts = header.parts.values()
    return {number for part in parts for number in _blocks_of(header, part.labels, part.labels + 4 * part.count)}


def _blocks_of_images(header: _Header, which: str, places: Iterable[int]) -> set[int]:
    first, size = header.parts[which].images, 3 * header.size**2
    starts = (first + place * size for place in places)
    return {number for start in starts for number in _blocks_of(header, start, start + size)}


def _check_blocks(name: str, path: Path, header: _Header, numbers: set[int] | None = None) -> None:
    """Raise if a block has other bytes than the header says; by default all blocks are read, on all cores."""

    def one(number: int) -> str:
        with path.open("rb") as file:
            file.seek(header.start + number * header.block_bytes)
            return hashlib.sha256(file.read(header.block_bytes)).hexdigest()

    expected = -(-(header.end - header.start) // header.block_bytes)
    if len(header.blocks) != expected:
        raise DataError(
            f"dataset {name}: {path} has the digests of {len(header.blocks)} blocks, expected {expected}; pack it again"
        )
    checked = sorted(range(expected) if numbers is None else numbers)
    with ThreadPoolExecutor(num_threads()) as pool:
        for number, actual in zip(checked, pool.map(one, checked), strict=True):
            if header.blocks[number] != actual:
                raise DataError(f"dataset {name}: {path} is damaged in block {number} of {expected}; pack it again")
