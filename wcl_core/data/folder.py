"""A tree of class folders with image files: its description, and its images decoded into memory.

`layout` finds the files, `image_file` reads each of them.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from wcl_core.data.decoding import Pixels, Wish, read_all, read_file
from wcl_core.data.image_file import RULES_VERSION, SIXTEEN_BITS, Facts, UnreadableError
from wcl_core.data.images import (
    MEMORY_SHARE,
    DataError,
    Description,
    ImageData,
    Split,
    class_counts,
    fits_memory,
    tensor_digest,
)
from wcl_core.data.layout import Entry, Files, Remarks, list_files, shown
from wcl_core.data.samples import samples_of_files
from wcl_core.limits import memory_bytes
from wcl_core.protocol import DatasetReport, storable
from wcl_core.reporter import Reporter
from wcl_core.stop import check

if TYPE_CHECKING:
    from wcl_core.data.cache import Cache
    from wcl_core.data.file_index import FileIndex

_NAMED_CORRUPT_FILES = 20
_MAX_CHARACTERS = 1000  # of a message about a file
_REPORT_SECONDS = 1.0
_CHECKED_FILES = 16  # between two looks at the requests and the clock
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


class CorruptFacts(TypedDict):
    """The files that cannot be decoded: all files, those that cannot, and messages about the first ones."""

    total: int
    count: int
    messages: list[str]


class Corrupt:
    """A count of the files that cannot be decoded, and the check that they are not too many.

    Args:
        total: number of files.
        facts: the result of `facts` when the folder was decoded earlier.
    """

    def __init__(
        self, name: str, total: int, max_share: float, reporter: Reporter, facts: CorruptFacts | None = None
    ) -> None:
        self._name, self._total, self._max_share, self._reporter = name, total, max_share, reporter
        self._count, self._messages = (facts["count"], facts["messages"]) if facts else (0, [])

    def add(self, message: str) -> None:
        """Count one more."""
        self._count += 1
        if self._count <= _NAMED_CORRUPT_FILES:
            self._messages.append(message[:_MAX_CHARACTERS])

    def facts(self) -> CorruptFacts:
        """Return the count and the first messages, for JSON."""
        return {"total": self._total, "count": self._count, "messages": self._messages}

    def check(self) -> None:
        """Report a warning for each file, up to a limit.

        Raises:
            DataError: their share is above the largest tolerated share.
        """
        for message in self._messages:
            self._reporter.warning("corrupt_image", message)
        if self._count > self._max_share * self._total:
            raise DataError(
                f"dataset {self._name}: {self._count} of {self._total} image files cannot be decoded, more than "
                f"data.max_corrupt_share = {self._max_share:g} allows; remove the files, or allow more. "
                f"The first is {self._messages[0]}"
            )
        if self._count > _NAMED_CORRUPT_FILES:
            self._reporter.warning("corrupt_image", f"and {self._count - _NAMED_CORRUPT_FILES} more files")


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
            if not count and self._files.splits[which]:
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
        warn_of_scaled(self.num_scaled, reporter)

    @property
    def num_scaled(self) -> int:
        """The number of images whose samples were scaled to 8 bits."""
        return sum(remark.count for remark in self._notes.list() if remark.text == SIXTEEN_BITS)


def warn_of_scaled(count: int, reporter: Reporter) -> None:
    """Report a warning if samples of images were scaled to 8 bits."""
    if count:
        reporter.warning("scaled_to_8_bits", f"{count} images: {SIXTEEN_BITS}")


def load_folder(
    name: str,
    root: Path,
    image_size: int,
    max_corrupt_share: float,
    reporter: Reporter,
    cache: Cache | None = None,
    digest: str | None = None,
    *,
    has_labels: bool = True,
) -> ImageData:
    """Load a folder, mapped from the cache if there is one; arguments and errors as `wcl_core.data.load`."""
    if cache is not None and digest is not None:
        from wcl_core.data.prepared import load_prepared

        arguments = (name, root, image_size, max_corrupt_share, reporter, cache, digest)
        prepared = load_prepared(*arguments, has_labels=has_labels)
        if prepared is not None:
            return prepared
    files = list_files(name, root, has_labels=has_labels)
    return _load_into_memory(name, files, image_size, max_corrupt_share, reporter)


def _load_into_memory(
    name: str, files: Files, image_size: int, max_corrupt_share: float, reporter: Reporter
) -> ImageData:
    _check_memory(name, files, image_size)
    corrupt, reading = Corrupt(name, files.count, max_corrupt_share, reporter), Reading(name, files)
    images: dict[str, list[Pixels]] = {which: [] for which in files.splits}
    entries: dict[str, list[Entry]] = {which: [] for which in files.splits}
    for which, pixels, entry in decoded(files, image_size, corrupt, reading, reporter):
        images[which].append(pixels)
        entries[which].append(entry)
    splits = {which: _split(images.pop(which), entries[which], image_size) for which in files.splits}
    corrupt.check()
    reading.check_not_empty({which: len(split) for which, split in splits.items()})
    reading.warn(reporter)
    return ImageData(name, splits["train"], splits["test"], files.classes, reading.digest, splits.get("unlabelled"))


def describe_folder(
    name: str,
    root: Path,
    index: FileIndex | None = None,
    tell: Callable[[float], None] = lambda _share: None,
    *,
    has_labels: bool = True,
) -> Description:
    """Return counts, classes, digest and report of a folder; each file is decoded, so damaged ones do not count.

    Args:
        index: files that have not changed since they were read are not read again.
        tell: called now and then with the share of files that are read.
        has_labels: whether a folder or list may name classes.

    Raises:
        DataError: as `list_files`, or no image of a split can be read.
    """
    files = list_files(name, root, has_labels=has_labels)
    reading = Reading(name, files)
    readable: dict[str, list[Entry]] = {which: [] for which in files.splits}
    for which, file, _ in _read_all(files, Wish(None), index, tell):
        reading.add(which, file)
        if file.facts is not None:
            readable[which].append(file.entry)
    counts = {which: len(entries) for which, entries in readable.items()}
    reading.check_not_empty(counts)
    by_class = class_counts(
        {which: [label for _, label in readable[which]] for which in ("train", "test")}, len(files.classes)
    )
    shown_files = readable["train"] or [(path, 0) for path, _ in readable["unlabelled"]]
    samples = samples_of_files(files.root, shown_files, max(1, len(files.classes)))
    return Description(
        name, "folder", reading.digest, counts, files.classes, by_class, samples=samples, report=reading.report()
    )


def _check_memory(name: str, files: Files, size: int) -> None:
    needed = files.count * 3 * size * size
    if not fits_memory(needed):
        raise DataError(
            f"dataset {name}: its images take {needed / 2**30:.1f} GiB at data.image_size = {size}, more than "
            f"{MEMORY_SHARE:.0%} of the {memory_bytes() / 2**30:.1f} GiB that this process may use; give the cache of "
            f"the worker more room (WCL_CACHE_BYTES), or pack the folder once and register the packed file "
            f"(python -m wcl_core pack {name} FOLDER {name}.wclpack --size {size})"
        )


def _split(images: list[Pixels], entries: list[Entry], size: int) -> Split:
    import torch

    stacked = torch.from_numpy(np.stack(images)) if images else torch.empty(0, 3, size, size, dtype=torch.uint8)
    targets = torch.tensor([label for _, label in entries], dtype=torch.int64)
    return Split(stacked, targets, tensor_digest(stacked, targets), files=tuple(path for path, _ in entries))


class Preparation:
    """The progress of decoding a folder, reported about once a second, and the requests that end it."""

    def __init__(self, files: Files, reporter: Reporter) -> None:
        self._reporter, self._total = reporter, files.count
        self._started_at = time.monotonic()
        self._reported_at = 0.0
        self._done = 0

    def count(self) -> None:
        """Count one more file.

        Raises:
            Interrupted: there is a request to end the run.
        """
        self._done += 1
        if self._done % _CHECKED_FILES:
            return
        check()
        now = time.monotonic()
        if now - self._reported_at >= _REPORT_SECONDS:
            self._reported_at = now
            left = (now - self._started_at) / self._done * (self._total - self._done)
            report_preparation(self._reporter, self._done / self._total, left)


def report_preparation(reporter: Reporter, share: float | None = None, seconds_left: float | None = None) -> None:
    """Report how much of the dataset is prepared; None where another process prepares it."""
    reporter.progress(
        step=0, total_steps=0, epoch=0, total_epochs=0, phase="prepare", share=share, eta_seconds=seconds_left
    )


def decoded(
    files: Files, size: int, corrupt: Corrupt, reading: Reading, reporter: Reporter
) -> Iterator[tuple[str, Pixels, Entry]]:
    """Yield split, image and entry, in order; a file that cannot be decoded goes to `corrupt`."""
    preparation = Preparation(files, reporter)
    for which, file, pixels in _read_all(files, Wish(size)):
        preparation.count()
        reading.add(which, file)
        if pixels is None:
            corrupt.add(f"{shown(file.entry[0])}: {file.error}")
        else:
            yield which, pixels, file.entry


def _read_all(
    files: Files, wish: Wish, index: FileIndex | None = None, tell: Callable[[float], None] = lambda _share: None
) -> Iterator[tuple[str, File, Pixels | None]]:
    """Yield split, file and pixels of all files, in the order of `Files.splits`; of files of the index no pixels."""
    entries = [(which, entry) for which, some in files.splits.items() for entry in some]
    is_known = [index is not None and index.get(path) is not None for _, (path, _) in entries]
    paths = [path for (_, (path, _)), known in zip(entries, is_known, strict=True) if not known]
    started_ns, num_read = time.time_ns(), 0
    reads = read_all(files.root, paths, wish)
    try:
        for (which, entry), known in zip(entries, is_known, strict=True):
            kept = index.get(entry[0]) if index is not None and known else None
            pixels: Pixels | None = None
            if kept is None:
                # A known file may have changed meanwhile.
                kept, pixels = read_file(files.root / entry[0], wish) if known else next(reads)
                num_read += 1
                if index is not None:
                    index.add(entry[0], kept, started_ns)
                if num_read % _CHECKED_FILES == 0:
                    tell(min(1.0, num_read / len(paths)))
            yield which, File(entry, kept.digest, kept.facts, storable(kept.error)), pixels
    except UnreadableError as error:
        raise DataError(f"dataset {files.name}: {error}") from error
