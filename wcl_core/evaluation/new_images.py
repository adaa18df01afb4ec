"""Features of images that no run has seen: a weight file and a folder in, a table out.

features.csv    a header, then a row for each image: path, f0, f1, ...
features.npy    (N, D) float32; features.txt beside it has the path of each row
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from wcl_core.data.decoding import Wish, read_all
from wcl_core.data.images import DataError
from wcl_core.data.layout import list_files, shown
from wcl_core.files import write_bytes
from wcl_core.images.augment import normalised
from wcl_core.networks.backbones import VisionBackbone
from wcl_core.networks.weights import load_backbone, trained_size

ENDINGS = (".csv", ".npy")
_BATCH_SIZE = 64


def write_features(file: Path, folder: Path, out: Path, size: int | None, warn: Callable[[str], None]) -> int:
    """Write the features of all images of a folder or list, and return their number.

    Args:
        file: an exported backbone, or a native checkpoint.
        out: `.csv` or `.npy`; it becomes visible whole.
        size: side of the images in pixels; by default that of the training.
        warn: called with a message for each image that cannot be read.

    Raises:
        ValueError: the ending of `out` is another one, or the file of names beside it would replace the list.
        CheckpointError: as `load_backbone`.
        DataError: there is no image that can be read.
    """
    if out.suffix.lower() not in ENDINGS:
        raise ValueError(f"{out}: expected a name that ends in {' or '.join(ENDINGS)}")
    listing = out.with_suffix(".txt")
    if out.suffix.lower() == ".npy" and listing.exists() and listing.samefile(folder):
        raise ValueError(f"{out}: its names would replace the list {listing}; expected another name")
    network = load_backbone(file)
    size = size or trained_size(file)
    if isinstance(network, VisionBackbone) and size < network.patch_size:
        raise ValueError(
            f"--size is {size}, but {file} cuts images into patches of {network.patch_size} pixels; "
            f"expected {network.patch_size} at least"
        )
    paths, rows = [], []
    for names, images in _batches(folder, size, warn):
        with torch.inference_mode():
            rows.append(network(normalised(images)).float().numpy())
        paths += names
    if not paths:
        raise DataError(f"{folder}: no image can be read")
    features = np.concatenate(rows)
    names = [shown(path) for path in paths]
    if out.suffix.lower() == ".csv":
        write_bytes(out, _table(names, features))
    else:
        content = io.BytesIO()
        np.save(content, features)
        write_bytes(out, content.getvalue())
        write_bytes(listing, "".join(f"{name}\n" for name in names).encode())
    return len(paths)


def _batches(folder: Path, size: int, warn: Callable[[str], None]) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Yield paths and images of a folder, (n, 3, S, S) uint8, in the order of the paths."""
    files = list_files("images", folder, has_labels=False)
    paths = [path for path, _ in files.unlabelled]
    names: list[str] = []
    images: list[torch.Tensor] = []
    for path, (read, pixels) in zip(paths, read_all(files.root, paths, Wish(size)), strict=True):
        if pixels is None:
            warn(f"{shown(path)}: {read.error}")
            continue
        names.append(path)
        images.append(torch.from_numpy(pixels.copy()))
        if len(names) == _BATCH_SIZE:
            yield names, torch.stack(images)
            names, images = [], []
    if names:
        yield names, torch.stack(images)


def _table(paths: list[str], features: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", *(f"f{number}" for number in range(features.shape[1]))])
    for path, row in zip(paths, features.tolist(), strict=True):
        writer.writerow([path, *(f"{value:.9g}" for value in row)])
    return text.getvalue().encode()
