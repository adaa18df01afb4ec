"""A tree of class folders with image files, decoded once into memory.

    ROOT/train/<class>/<file>   and   ROOT/{test,val,validation}/<class>/<file>     ImageNet's layout
    ROOT/<class>/<file>         one split only: a fixed fifth of each class, chosen by digest, is the test split
    ROOT/unlabelled/<file>      beside train/: further images without labels, for pretraining

Files may lie at any depth below a class folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from wcl_core.data.images import DataError, Description, ImageData, Split, class_counts, tensor_digest
from wcl_core.data.samples import Samples, samples_of_files
from wcl_core.reporter import Reporter

Entry = tuple[str, int]  # path relative to the root, class index
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
_TEST_NAMES = ("test", "val", "validation")
_UNLABELLED_NAMES = ("unlabelled", "unlabeled")
_MAX_PIXELS = 100_000_000  # an image of more is a decompression bomb, not a photograph
_NAMED_CORRUPT_FILES = 20
_MEMORY_SHARE = 0.5  # share of this machine's memory that decoded images may take
_AT_ONCE = 1024  # files given to the decoding threads together: a million futures would take much memory


@dataclass(frozen=True)
class Files:
    """The image files of a folder, by split."""

    train: list[Entry]
    test: list[Entry]
    classes: tuple[str, ...]
    unlabelled: list[Entry] = field(default_factory=list)

    @property
    def splits(self) -> dict[str, list[Entry]]:
        """The files by name of the split; `unlabelled` only if it has files."""
        both = {"train": self.train, "test": self.test}
        return both | {"unlabelled": self.unlabelled} if self.unlabelled else both


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


def load_folder(name: str, root: Path, image_size: int, max_corrupt_share: float, reporter: Reporter) -> ImageData:
    """Decode a folder into memory; arguments and errors as `wcl_core.data.load`."""
    files = list_files(name, root)
    _check_memory(name, files, image_size)
    corrupt = Corrupt(name, files, max_corrupt_share, reporter)
    splits = {which: _decode(root, entries, image_size, corrupt) for which, entries in files.splits.items()}
    corrupt.check()
    check_not_empty(name, {which: len(split) for which, split in splits.items()})
    digest = files_digest(root, files)
    return ImageData(name, splits["train"], splits["test"], files.classes, digest, splits.get("unlabelled"))


def describe_folder(name: str, root: Path) -> Description:
    """Return counts, classes and digest of a folder; only the sample images are decoded."""
    files = list_files(name, root)
    counts = {which: len(entries) for which, entries in files.splits.items()}
    labels = {which: [label for _, label in files.splits[which]] for which in ("train", "test")}
    by_class = class_counts(labels, len(files.classes))
    samples = folder_samples(name, root)
    return Description(name, "folder", files_digest(root, files), counts, files.classes, by_class, samples=samples)


def folder_samples(name: str, root: Path) -> Samples | None:
    """Return some train images of each class as a picture."""
    files = list_files(name, root)
    return samples_of_files(root, files.train, len(files.classes))


def check_not_empty(name: str, counts: dict[str, int]) -> None:
    """Raise if no file of a split can be read.

    Raises:
        DataError: a split is empty; the message names it.
    """
    for which, count in counts.items():
        if not count:
            raise DataError(f"dataset {name}: no image file of the {which} split can be decoded")


def list_files(name: str, root: Path) -> Files:
    """Return the image files of a tree, in the order of their names.

    Raises:
        DataError: the tree has none of the layouts above.
    """
    if not root.is_dir():
        raise DataError(f"dataset {name}: folder {root} does not exist")
    files = _two_splits(name, root) if (root / "train").is_dir() else _one_split(root)
    if not files.train or not files.test:
        raise DataError(
            f"dataset {name}: {root} has no image files below class folders; expected {root}/train/CLASS/FILE and "
            f"{root}/test/CLASS/FILE, or {root}/CLASS/FILE"
        )
    return files


def _two_splits(name: str, root: Path) -> Files:
    test_name = next((split for split in _TEST_NAMES if (root / split).is_dir()), None)
    if test_name is None:
        raise DataError(
            f"dataset {name}: {root} has train/ and no test split; expected {' or '.join(_TEST_NAMES)} beside it"
        )
    classes = _class_names(root / "train")
    if extra := set(_class_names(root / test_name)) - set(classes):
        raise DataError(
            f"dataset {name}: {test_name}/ has classes that train/ lacks: {', '.join(sorted(extra))}; expected the "
            "same class folders in both"
        )
    unlabelled = [
        (path, -1) for split in _UNLABELLED_NAMES if (root / split).is_dir() for path in _images(root, root / split)
    ]
    train, test = (_class_files(root, root / split, classes) for split in ("train", test_name))
    return Files(train, test, classes, unlabelled)


def _one_split(root: Path) -> Files:
    classes = _class_names(root)
    both = _class_files(root, root, classes)
    held_out = _held_out_files(both, len(classes))
    train = [entry for entry in both if entry[0] not in held_out]
    test = [entry for entry in both if entry[0] in held_out]
    return Files(train, test, classes)


def _held_out_files(entries: list[Entry], num_classes: int) -> set[str]:
    """Return a fifth of each class, by the digest of the paths: equal on every machine, stable under additions."""
    by_class: list[list[str]] = [[] for _ in range(num_classes)]
    for path, label in entries:
        by_class[label].append(path)
    chosen: set[str] = set()
    for paths in by_class:
        paths.sort(key=lambda path: hashlib.sha256(os.fsencode(path)).digest())
        chosen.update(paths[: max(1, len(paths) // 5)] if len(paths) > 1 else [])
    return chosen


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")))


def _class_files(root: Path, split: Path, classes: tuple[str, ...]) -> list[Entry]:
    return [(path, label) for label, name in enumerate(classes) for path in _images(root, split / name)]


def _images(root: Path, folder: Path) -> list[str]:
    return [
        file.relative_to(root).as_posix()
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".") and file.is_file()
    ]


def files_digest(root: Path, files: Files) -> str:
    """Return the sha256 over split, relative path, class and bytes of every file."""

    def one(entry: Entry) -> bytes:
        return hashlib.sha256((root / entry[0]).read_bytes()).digest()

    digest = hashlib.sha256()
    with ThreadPoolExecutor() as pool:
        for which, entries in files.splits.items():
            for some in _pieces(entries):
                for (path, label), content in zip(some, pool.map(one, some), strict=True):
                    digest.update(os.fsencode(f"{which}\0{path}\0{label}\0") + content)
    return digest.hexdigest()


def _check_memory(name: str, files: Files, size: int) -> None:
    needed = sum(map(len, files.splits.values())) * 3 * size * size
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > _MEMORY_SHARE * memory:
        raise DataError(
            f"dataset {name}: its images take {needed / 2**30:.1f} GiB at data.image_size = {size}, more than "
            f"{_MEMORY_SHARE:.0%} of this machine's {memory / 2**30:.1f} GiB; pack it once "
            f"(python -m wcl_core pack {name} FOLDER {name}.wclpack --size {size}) and register the packed file"
        )


def _decode(root: Path, entries: list[Entry], size: int, corrupt: Corrupt) -> Split:
    images, read = [], []
    for image, entry in decoded(root, entries, size, corrupt):
        images.append(image)
        read.append(entry)
    stacked = torch.stack(images) if images else torch.empty(0, 3, size, size, dtype=torch.uint8)
    targets = torch.tensor([label for _, label in read], dtype=torch.int64)
    return Split(stacked, targets, tensor_digest(stacked, targets), files=tuple(path for path, _ in read))


def decoded(root: Path, entries: list[Entry], size: int, corrupt: Corrupt) -> Iterator[tuple[Tensor, Entry]]:
    """Yield image, (3, size, size) uint8, and entry, in order; a file that cannot be decoded goes to `corrupt`."""

    def one(entry: Entry) -> Tensor | str:
        try:
            return _decode_file(root / entry[0], size)
        except Exception as error:  # image decoders raise anything on damaged bytes
            # The message is shown to users, who must not learn where the folder lies on this machine.
            reason = str(error).replace(str(root / entry[0]), entry[0])
            return f"{entry[0]}: {type(error).__name__}: {reason}"

    with ThreadPoolExecutor() as pool:
        for some in _pieces(entries):
            for entry, image in zip(some, pool.map(one, some), strict=True):
                if isinstance(image, str):
                    corrupt.add(image)
                else:
                    yield image, entry


def _pieces(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    for start in range(0, len(entries), _AT_ONCE):
        yield entries[start : start + _AT_ONCE]


def _decode_file(path: Path, size: int) -> Tensor:
    """Decode a file to (3, size, size) uint8: the shorter side is scaled to `size`, then centre crop."""
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        if opened.width * opened.height > _MAX_PIXELS:
            raise ValueError(f"it has {opened.width}x{opened.height} pixels; expected at most {_MAX_PIXELS} in all")
        image = ImageOps.fit(opened.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
