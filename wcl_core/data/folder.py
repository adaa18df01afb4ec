"""A tree of class folders with image files: its description, and its images decoded into memory.

`layout` finds the files, `image_file` reads each of them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wcl_core.data.image_file import RULES_VERSION, SIXTEEN_BITS, Facts, UnreadableError, read_image
from wcl_core.data.images import DataError, Description, ImageData, Split, class_counts, tensor_digest
from wcl_core.data.layout import Entry, Files, Remarks, list_files, shown
from wcl_core.data.samples import samples_of_files
from wcl_core.limits import memory_bytes, num_threads
from wcl_core.protocol import DatasetReport, storable
from wcl_core.reporter import Reporter

if TYPE_CHECKING:  # a description never loads torch
    from torch import Tensor

Pixels = np.ndarray[Any, Any]  # (side, side, 3) uint8
Read = Callable[[Path], tuple[Facts, Pixels | None]]

_NAMED_CORRUPT_FILES = 20
_MEMORY_SHARE = 0.5  # share of this machine's memory that decoded images may take
_AT_ONCE = 1024  # files given to the decoding threads together: a million futures would take much memory
_NUMBERS = re.compile(r"\d+")
UNREADABLE = "images that cannot be read"
NO_TRAIN = "classes without a readable train image"
ONE_TRAIN = "classes with a single train image"
NO_TEST = "classes without a test image"


@dataclass(frozen=True)
class File:
    """One image file after reading: its facts, or why it cannot be read.

    Attributes:
        entry: path and class.
        digest: sha256 of the file's bytes.
    """

    entry: Entry
    digest: bytes
    facts: Facts | None
    error: str = ""


class Corrupt:
    """A count of the files that cannot be decoded, and the check that they are not too many."""

    def __init__(self, name: str, files: Files, max_share: float, reporter: Reporter) -> None:
        self._name, self._max_share, self._reporter = name, max_share, reporter
        self._total = sum(map(len, files.splits.values()))
        self._messages: list[str] = []

    def add(self, message: str) -> None:
        """Count one more."""
        self._messages.append(message)

    def check(self) -> None:
        """Report a warning for each file, up to a limit.

        Raises:
            DataError: their share is above the largest tolerated share.
        """
        count = len(self._messages)
        for message in self._messages[:_NAMED_CORRUPT_FILES]:
            self._reporter.warning("corrupt_image", message)
        if count > self._max_share * self._total:
            raise DataError(
                f"dataset {self._name}: {count} of {self._total} image files cannot be decoded, more than "
                f"data.max_corrupt_share = {self._max_share:g} allows; remove the files, or allow more. "
                f"The first is {self._messages[0]}"
            )
        if count > _NAMED_CORRUPT_FILES:
            self._reporter.warning("corrupt_image", f"and {count - _NAMED_CORRUPT_FILES} more files")


class Reading:
    """One pass over all files of a folder: the digest of the folder, and the report on it."""

    def __init__(self, name: str, files: Files) -> None:
        self._name, self._files = name, files
        self._digest = hashlib.sha256()
        self._formats: Counter[str] = Counter()
        self._modes: Counter[str] = Counter()
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._unreadable, self._notes = Remarks(), Remarks()
        self._first_error = ""
        self._by_class = {which: [0] * len(files.classes) for which in ("train", "test")}

    def add(self, which: str, file: File) -> None:
        """Take one file of a split into account, in the order of `Files.splits`.

        The digest covers split, relative path, class and bytes.  Where version 1 of the rules for pixels gave other
        ones, it covers the version, too: a folder of plain images keeps the digest that it had.
        """
        path, label = file.entry
        self._digest.update(os.fsencode(f"{which}\0{path}\0{label}\0") + file.digest)
        if file.facts is None or file.facts.has_new_pixels:
            self._digest.update(f"rules {RULES_VERSION}\0".encode())
        if file.facts is None:
            # Without numbers, so that alike files are one remark.
            self._unreadable.add(f"{UNREADABLE}: {_NUMBERS.sub('…', file.error)}", path)
            self._first_error = self._first_error or f"{shown(path)}: {file.error}"
            return
        if which in self._by_class:
            self._by_class[which][label] += 1
        self._formats[file.facts.format] += 1
        self._modes[file.facts.mode] += 1
        self._sizes[file.facts.width, file.facts.height] += 1
        for note in file.facts.notes:
            self._notes.add(note, path)

    @property
    def digest(self) -> str:
        """The folder's digest, 64 hex digits."""
        return self._digest.hexdigest()

    def check_not_empty(self, counts: dict[str, int]) -> None:
        """Raise if no file of a split can be read.

        Raises:
            DataError: a split is empty; the message names it.
        """
        for which, count in counts.items():
            if not count:
                raise DataError(
                    f"dataset {self._name}: no image file of the {which} split can be decoded; "
                    f"the first is {self._first_error}"
                )

    def report(self) -> DatasetReport:
        """Return the report; some file has been readable."""
        sizes = sorted(self._sizes, key=lambda size: (size[0] * size[1], size))
        middle = np.searchsorted(np.cumsum([self._sizes[size] for size in sizes]), self._sizes.total() / 2)
        unreadable = self._unreadable.list()
        classes = Remarks()
        for name, train, test in zip(self._files.classes, *self._by_class.values(), strict=True):
            if train < 2:
                classes.add((NO_TRAIN, ONE_TRAIN)[train], name)
            if not test:
                classes.add(NO_TEST, name)
        return DatasetReport(
            layout=self._files.layout,
            formats=dict(self._formats.most_common()),
            modes=dict(self._modes.most_common()),
            smallest=sizes[0],
            median=sizes[int(middle)],
            largest=sizes[-1],
            unreadable=sum(remark.count for remark in unreadable),
            left_out=[*unreadable, *self._files.left_out.list()],
            odd=[*self._notes.list(), *classes.list(), *self._files.odd.list()],
        )

    def warn(self, reporter: Reporter) -> None:
        """Report a warning if samples were scaled to 8 bits, since that loses information."""
        for remark in self._notes.list():
            if remark.text == SIXTEEN_BITS:
                reporter.warning("scaled_to_8_bits", f"{remark.count} images: {remark.text}")


def load_folder(name: str, root: Path, image_size: int, max_corrupt_share: float, reporter: Reporter) -> ImageData:
    """Decode a folder into memory; arguments and errors as `wcl_core.data.load`."""
    files = list_files(name, root)
    _check_memory(name, files, image_size)
    corrupt, reading = Corrupt(name, files, max_corrupt_share, reporter), Reading(name, files)
    splits = {which: _decode(files, which, image_size, corrupt, reading) for which in files.splits}
    corrupt.check()
    reading.check_not_empty({which: len(split) for which, split in splits.items()})
    reading.warn(reporter)
    return ImageData(name, splits["train"], splits["test"], files.classes, reading.digest, splits.get("unlabelled"))


def describe_folder(name: str, root: Path) -> Description:
    """Return counts, classes, digest and report of a folder; each file is decoded, so damaged ones do not count.

    Raises:
        DataError: as `list_files`, or no image of a split can be read.
    """

    def read(path: Path) -> tuple[Facts, None]:
        return read_image(path, 1, is_preview=True)[1], None

    files = list_files(name, root)
    reading = Reading(name, files)
    readable: dict[str, list[Entry]] = {}
    for which, entries in files.splits.items():
        readable[which] = []
        for file, _ in _read_all(files.root, entries, read):
            reading.add(which, file)
            if file.facts is not None:
                readable[which].append(file.entry)
    counts = {which: len(entries) for which, entries in readable.items()}
    reading.check_not_empty(counts)
    by_class = class_counts(
        {which: [label for _, label in readable[which]] for which in ("train", "test")}, len(files.classes)
    )
    samples = samples_of_files(files.root, readable["train"], len(files.classes))
    return Description(
        name, "folder", reading.digest, counts, files.classes, by_class, samples=samples, report=reading.report()
    )


def _check_memory(name: str, files: Files, size: int) -> None:
    needed = sum(map(len, files.splits.values())) * 3 * size * size
    memory = memory_bytes()
    if needed > _MEMORY_SHARE * memory:
        raise DataError(
            f"dataset {name}: its images take {needed / 2**30:.1f} GiB at data.image_size = {size}, more than "
            f"{_MEMORY_SHARE:.0%} of the {memory / 2**30:.1f} GiB that this process may use; pack it once "
            f"(python -m wcl_core pack {name} FOLDER {name}.wclpack --size {size}) and register the packed file"
        )


def _decode(files: Files, which: str, size: int, corrupt: Corrupt, reading: Reading) -> Split:
    import torch

    images, read = [], []
    for image, entry in decoded(files, which, size, corrupt, reading):
        images.append(image)
        read.append(entry)
    stacked = torch.stack(images) if images else torch.empty(0, 3, size, size, dtype=torch.uint8)
    targets = torch.tensor([label for _, label in read], dtype=torch.int64)
    return Split(stacked, targets, tensor_digest(stacked, targets), files=tuple(path for path, _ in read))


def decoded(files: Files, which: str, size: int, corrupt: Corrupt, reading: Reading) -> Iterator[tuple[Tensor, Entry]]:
    """Yield image, (3, size, size) uint8, and entry, in order; a file that cannot be decoded goes to `corrupt`."""
    import torch

    def read(path: Path) -> tuple[Facts, Pixels]:
        image, facts = read_image(path, size)
        return facts, np.array(image)

    for file, pixels in _read_all(files.root, files.splits[which], read):
        reading.add(which, file)
        if pixels is None:
            corrupt.add(f"{shown(file.entry[0])}: {file.error}")
        else:
            yield torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), file.entry


def _read_all(root: Path, entries: Sequence[Entry], read: Read) -> Iterator[tuple[File, Pixels | None]]:
    """Read and hash files on threads, and yield them in order."""

    def one(entry: Entry) -> tuple[File, Pixels | None]:
        path, digest = root / entry[0], b""
        try:
            with path.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").digest()
            facts, pixels = read(path)
        except UnreadableError as error:
            return File(entry, digest, None, storable(str(error))), None
        except OSError as error:
            return File(entry, digest, None, f"it cannot be opened: {error.strerror}"), None
        return File(entry, digest, facts), pixels

    with ThreadPoolExecutor(num_threads()) as pool:
        for start in range(0, len(entries), _AT_ONCE):
            yield from pool.map(one, entries[start : start + _AT_ONCE])
