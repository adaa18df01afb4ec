"""Images as uint8 tensors in memory, decoded once; which images make which step.

Two kinds of dataset: `builtin` (scikit-learn's handwritten digits, CIFAR-10 through torchvision) and `folder`, any tree
of class folders with image files:

    ROOT/train/<class>/<file>   and   ROOT/{test,val,validation}/<class>/<file>
    ROOT/<class>/<file>         one split only: a fixed fifth of every class, chosen by digest, is held out

Random views are `augment`'s business.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from wcl_core.reporter import Reporter

DatasetKind = Literal["builtin", "folder"]
BUILTIN = ("digits", "cifar10")
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
_TEST_NAMES = ("test", "val", "validation")
_MAX_PIXELS = 100_000_000  # an image of more is a decompression bomb, not a photograph
_NAMED_CORRUPT_FILES = 20


class DataError(ValueError):
    """The data cannot be used: absent, empty, or too much of it corrupt; the message names what and where."""


@dataclass(frozen=True)
class Split:
    """One split in memory.

    Attributes:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64 class indices, used by evaluation and monitors only.
        digest: sha256 of labels and decoded pixels, 64 hex digits.
    """

    images: Tensor
    labels: Tensor
    digest: str

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageData:
    """A dataset: both splits, class names in label order, and the digest of its source files."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class Description:
    """What a dataset holds, told without decoding it."""

    name: str
    kind: DatasetKind
    digest: str
    counts: dict[str, int]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class _Files:
    """Image files of a folder by split: paths relative to the root and class indices."""

    train: list[tuple[str, int]]
    test: list[tuple[str, int]]
    classes: tuple[str, ...]


def load(
    name: str, kind: DatasetKind, path: Path | None, image_size: int, max_corrupt_share: float, reporter: Reporter
) -> ImageData:
    """Decode a dataset once.

    Args:
        name: its name; for a builtin one of `BUILTIN`.
        kind: where it comes from.
        path: the folder; for a builtin an optional cache folder.
        image_size: side in pixels; every image is scaled so that its shorter side has it, then centre-cropped.
        max_corrupt_share: the largest share of undecodable files that is tolerated.
        reporter: told the name of every undecodable file, up to a limit.

    Raises:
        DataError: absent or empty data, or too many corrupt files.
    """
    if kind == "folder":
        if path is None:
            raise DataError(f"dataset {name}: a folder is needed")
        return _load_folder(name, path, image_size, max_corrupt_share, reporter)
    return _load_builtin(name, path, image_size)


def describe(name: str, kind: DatasetKind, path: Path | None) -> Description:
    """Counts, classes and the digest that `load` will report, without decoding a folder's images.

    Raises:
        DataError: as `load`.
    """
    if kind == "folder":
        if path is None:
            raise DataError(f"dataset {name}: a folder is needed")
        files = _list_folder(name, path)
        counts = {"train": len(files.train), "test": len(files.test)}
        return Description(name, kind, _files_digest(path, files), counts, files.classes)
    data = _load_builtin(name, path, None)
    return Description(name, kind, data.digest, {"train": len(data.train), "test": len(data.test)}, data.classes)


def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """A permutation of 0..size-1, a function of (seed, epoch) alone: (size,) int64 on the CPU."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    return torch.randperm(size, generator=generator)


def epoch_batches(size: int, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[Tensor]:
    """The epoch's global batches from number `start` on; the last incomplete one is dropped."""
    order = epoch_order(size, seed, epoch)
    for index in range(start, size // batch_size):
        yield order[index * batch_size : (index + 1) * batch_size]


def derived_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed of its own for each purpose, so that streams of random numbers never overlap."""
    text = ":".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


# --- builtin -------------------------------------------------------------------------------------------------------


def _load_builtin(name: str, cache: Path | None, image_size: int | None) -> ImageData:
    if name == "digits":
        images, labels = _digits()
        is_test = _held_out_fifth(labels)
        train, test = (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])
        classes = tuple(str(digit) for digit in range(10))
    elif name == "cifar10":
        train, test, classes = _cifar10(cache)
    else:
        raise DataError(f"dataset {name}: no such builtin; expected one of {', '.join(BUILTIN)}")
    digest = _tensor_digest(*train, *test)
    return ImageData(name, _resized(*train, image_size), _resized(*test, image_size), classes, digest)


def _digits() -> tuple[Tensor, Tensor]:
    """The 1,797 handwritten digits of 8x8 pixels and 17 grey levels that scikit-learn carries."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)
    return grey[:, None].expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(bunch.target).long()


def _cifar10(cache: Path | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
    from torchvision.datasets import CIFAR10

    root = cache or Path.home() / ".cache" / "wcl"
    splits, classes = [], ()
    for is_train in (True, False):
        try:
            split = CIFAR10(str(root), train=is_train, download=True)
        except Exception as error:  # torchvision raises what its many sources raise
            raise DataError(f"dataset cifar10 is not in {root} and could not be fetched: {error}") from error
        splits.append((torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(split.targets)))
        classes = tuple(split.classes)
    return splits[0], splits[1], classes


def _held_out_fifth(labels: Tensor) -> Tensor:
    """Every fifth image of every class: (N,) bool."""
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        is_test[(labels == label).nonzero().flatten()[::5]] = True
    return is_test


def _resized(images: Tensor, labels: Tensor, size: int | None) -> Split:
    if size is not None and tuple(images.shape[-2:]) != (size, size):
        from torchvision.transforms.v2 import functional

        images = functional.center_crop(functional.resize(images, [size], antialias=True), [size])
    return Split(images, labels, _tensor_digest(images, labels))


def _tensor_digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- folder --------------------------------------------------------------------------------------------------------


def _load_folder(name: str, root: Path, image_size: int, max_corrupt_share: float, reporter: Reporter) -> ImageData:
    files = _list_folder(name, root)
    corrupt: list[str] = []
    train = _decode(root, files.train, image_size, corrupt)
    test = _decode(root, files.test, image_size, corrupt)
    total = len(files.train) + len(files.test)
    for message in corrupt[:_NAMED_CORRUPT_FILES]:
        reporter.warning("corrupt_image", message)
    if len(corrupt) > max_corrupt_share * total:
        raise DataError(
            f"dataset {name}: {len(corrupt)} of {total} image files cannot be decoded, more than "
            f"data.max_corrupt_share = {max_corrupt_share:g} allows; the first is {corrupt[0]}"
        )
    if len(corrupt) > _NAMED_CORRUPT_FILES:
        reporter.warning("corrupt_image", f"and {len(corrupt) - _NAMED_CORRUPT_FILES} more files")
    for which, split in (("train", train), ("test", test)):
        if not len(split):
            raise DataError(f"dataset {name}: the {which} split holds no readable image")
    return ImageData(name, train, test, files.classes, _files_digest(root, files))


def _list_folder(name: str, root: Path) -> _Files:
    if not root.is_dir():
        raise DataError(f"dataset {name}: folder {root} does not exist")
    if (root / "train").is_dir():
        test_name = next((split for split in _TEST_NAMES if (root / split).is_dir()), None)
        if test_name is None:
            raise DataError(f"dataset {name}: {root} has train/ but none of {', '.join(_TEST_NAMES)}")
        classes = _class_names(root / "train")
        if extra := set(_class_names(root / test_name)) - set(classes):
            raise DataError(f"dataset {name}: {test_name}/ has classes that train/ lacks: {', '.join(sorted(extra))}")
        train = _class_files(root, root / "train", classes)
        test = _class_files(root, root / test_name, classes)
    else:
        classes = _class_names(root)
        both = _class_files(root, root, classes)
        held_out = _held_out_files(both, len(classes))
        train = [entry for entry in both if entry[0] not in held_out]
        test = [entry for entry in both if entry[0] in held_out]
    if not train or not test:
        raise DataError(f"dataset {name}: no image files below class folders in {root}")
    return _Files(train, test, classes)


def _held_out_files(entries: list[tuple[str, int]], num_classes: int) -> set[str]:
    """A fifth of each class by the digest of its paths: random-looking, the same everywhere, stable under additions."""
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


def _class_files(root: Path, split: Path, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    return [
        (file.relative_to(root).as_posix(), label)
        for label, name in enumerate(classes)
        for file in sorted((split / name).rglob("*"))
        if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".") and file.is_file()
    ]


def _files_digest(root: Path, files: _Files) -> str:
    """sha256 over split, relative path, class and bytes of every file."""

    def one(entry: tuple[str, int]) -> bytes:
        return hashlib.sha256((root / entry[0]).read_bytes()).digest()

    digest = hashlib.sha256()
    with ThreadPoolExecutor() as pool:
        for which, entries in (("train", files.train), ("test", files.test)):
            for (path, label), content in zip(entries, pool.map(one, entries), strict=True):
                digest.update(os.fsencode(f"{which}\0{path}\0{label}\0") + content)
    return digest.hexdigest()


def _decode(root: Path, entries: list[tuple[str, int]], size: int, corrupt: list[str]) -> Split:
    def one(entry: tuple[str, int]) -> Tensor | str:
        try:
            return _decode_file(root / entry[0], size)
        except Exception as error:  # image decoders raise anything on damaged bytes
            # Where the folder lies on this machine is not the business of whoever reads the message.
            reason = str(error).replace(str(root / entry[0]), entry[0])
            return f"{entry[0]}: {type(error).__name__}: {reason}"

    images, labels = [], []
    with ThreadPoolExecutor() as pool:
        for (_, label), decoded in zip(entries, pool.map(one, entries), strict=True):
            if isinstance(decoded, str):
                corrupt.append(decoded)
            else:
                images.append(decoded)
                labels.append(label)
    stacked = torch.stack(images) if images else torch.empty(0, 3, size, size, dtype=torch.uint8)
    targets = torch.tensor(labels, dtype=torch.int64)
    return Split(stacked, targets, _tensor_digest(stacked, targets))


def _decode_file(path: Path, size: int) -> Tensor:
    """(3, size, size) uint8: shorter side scaled to `size`, centre crop."""
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        if opened.width * opened.height > _MAX_PIXELS:
            raise ValueError(f"{opened.width}x{opened.height} pixels, more than {_MAX_PIXELS} in all")
        image = ImageOps.fit(opened.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
