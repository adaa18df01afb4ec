"""Features of images that no run has seen: a weight file and a folder in, a table out (`feature_table`)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wcl_core.data.decoding import Wish, check_image, read_all
from wcl_core.data.images import DataError
from wcl_core.data.kinds import HIDDEN, LISTS, is_archive
from wcl_core.data.layout import Files, list_files, shown
from wcl_core.evaluation.embedding import read_embeddings
from wcl_core.evaluation.feature_table import check_target, listing_of, write_feature_table
from wcl_core.evaluation.run import untrained_backbone
from wcl_core.images.augment import normalised
from wcl_core.methods.heads import normalise
from wcl_core.networks.backbones import FeatureNetwork, VisionBackbone
from wcl_core.networks.weights import load_backbone, read_backbone, trained_size

_BATCH_SIZE = 64
_SEED = 0

Warn = Callable[[str], None]


class Features:
    """The features of images by a weight file; `left_out` counts the images that cannot be read, by reason.

    Args:
        file: an exported backbone, a native checkpoint, or a classifier.
        size: side of the images in pixels; by default that of the training.
        warn: called with a message for each image that cannot be read.

    Raises:
        CheckpointError: as `load_backbone`.
        ValueError: an image of this size has no patch.
    """

    def __init__(self, file: Path, size: int | None, warn: Warn) -> None:
        self.network: FeatureNetwork = load_backbone(file)
        self.size = size or trained_size(file)
        self.left_out = Counter[str]()
        self._file, self._warn = file, warn
        if isinstance(self.network, VisionBackbone) and self.size < self.network.patch_size:
            side = self.network.patch_size
            raise ValueError(
                f"--size is {self.size}, but {file} cuts images into patches of {side} pixels; expected {side} at least"
            )

    def of(self, root: Path, paths: Sequence[str]) -> tuple[list[int], Tensor]:
        """Return the places of the images that can be read, and their features: (N, D) float32.

        Args:
            root: the folder of the paths.
            paths: of image files, relative to it.

        Raises:
            DataError: there is no image that can be read.
        """
        places: list[int] = []
        rows: list[Tensor] = []
        images: list[Tensor] = []
        for place, (read, pixels) in enumerate(read_all(root, paths, Wish(self.size))):
            if pixels is None:
                self._warn(f"{shown(paths[place])}: {read.error}")
                self.left_out[read.error] += 1
                continue
            places.append(place)
            images.append(torch.from_numpy(pixels.copy()))
            if len(images) == _BATCH_SIZE:
                rows.append(self._computed(images))
                images = []
        if images:
            rows.append(self._computed(images))
        if not places:
            raise DataError(f"{root}: no image can be read")
        return places, torch.cat(rows)

    def untrained(self) -> Features:
        """Return the features by the same network before any training, which warn of nothing."""
        other = copy(self)
        _, config, side = read_backbone(self._file)
        other.network = untrained_backbone(config, _SEED, side).eval()
        other.left_out, other._warn = Counter(), lambda _: None
        return other

    def _computed(self, images: list[Tensor]) -> Tensor:
        with torch.inference_mode():
            rows: Tensor = self.network(normalised(torch.stack(images))).float()
        return rows


@dataclass(frozen=True)
class Written:
    """The number of images in a table, and of those that cannot be read, by reason."""

    num_images: int
    left_out: Counter[str]


def write_features(file: Path, places: Sequence[Path], out: Path, size: int | None, warn: Warn) -> Written:
    """Write the features of all images of a folder or list, or of single images.

    Args:
        file, size, warn: as for `Features`.
        places: as for `images_of`.
        out: `.csv`, `.parquet` or `.npy`, see `feature_table`.

    Raises:
        ValueError: as `check_target`, or the file of names beside `out` would replace the list.
        CheckpointError: as `load_backbone`.
        DataError: there is no image that can be read.
    """
    check_target(out)
    listing = listing_of(out)
    if out.suffix.lower() == ".npy" and listing.exists() and any(map(listing.samefile, filter(Path.exists, places))):
        raise ValueError(f"{out}: its names would replace the list {listing}; expected another name")
    files = images_of(places, warn)
    computed = Features(file, size, warn)
    paths = [path for path, _ in files.unlabelled]
    read, rows = computed.of(files.root, paths)
    write_feature_table(out, {"path": [shown(paths[place]) for place in read]}, rows)
    return Written(len(read), computed.left_out)


def write_dataset_features(embeddings: Path, out: Path, split: str | None) -> int:
    """Write the features of a registered dataset, which a job has computed, and return the number of images.

    Args:
        embeddings: the file of the job.
        out: `.csv`, `.parquet` or `.npy`, see `feature_table`.
        split: the split to write; by default all.

    Raises:
        ValueError: as `check_target`.
        CheckpointError: as `read_embeddings`.
    """
    check_target(out)
    rows = read_embeddings(embeddings, split)
    write_feature_table(out, {"path": rows.paths, "split": rows.splits, "label": rows.labels}, rows.features)
    return len(rows.paths)


@dataclass(frozen=True)
class Neighbour:
    """An image of a folder, and the cosine of the angle between its features and those of the image asked about."""

    path: str
    similarity: float


def neighbours(file: Path, image: Path, folder: Path, count: int, size: int | None, warn: Warn) -> list[Neighbour]:
    """Return the images of a folder, a list or a dataset that are most similar to an image, the nearest first.

    The image itself is left out of a folder or list.

    Args:
        file, size, warn: as for `Features`.
        image: an image file, in the folder or elsewhere.
        folder: a folder or a list, or the file of a dataset's features by the same network; its size is taken.
        count: the most that are returned.

    Raises:
        ValueError: the file of features is that of another network.
        DataError: the image cannot be read, or there is no other one that can.
        CheckpointError: as `load_backbone` and `read_embeddings`.
    """
    if problem := check_image(image):
        raise DataError(problem)
    stored = read_embeddings(folder) if folder.suffix == ".safetensors" else None
    computed = Features(file, size if stored is None else stored.image_size, warn)
    _, query = computed.of(image.parent, [image.name])
    if stored is None:
        names, features = _of_folder(computed, image, folder, warn)
    else:
        names, features = stored.paths, stored.features
    if features.shape[1] != query.shape[1]:
        raise ValueError(
            f"{folder}: its features have {features.shape[1]} numbers, and those of the image {query.shape[1]}; "
            "expected features by the same network"
        )
    similarity = (normalise(features) @ normalise(query)[0]).clamp(-1, 1)
    order = similarity.argsort(descending=True, stable=True)[:count].tolist()
    return [Neighbour(names[each], float(similarity[each])) for each in order]


def _of_folder(computed: Features, image: Path, folder: Path, warn: Warn) -> tuple[list[str], Tensor]:
    """Return names and features of the images of a folder or list without an image."""
    files = listed(folder, warn)
    itself = os.path.realpath(image)
    paths = [path for path, _ in files.unlabelled if os.path.realpath(files.root / path) != itself]
    if not paths:
        raise DataError(f"{folder} has no image other than {image.name}")
    places, features = computed.of(files.root, paths)
    return [shown(paths[place]) for place in places], features


def images_of(places: Sequence[Path], warn: Warn) -> Files:
    """Return the images of one folder or list, or single image files.

    Args:
        places: the folder or the list, or the files.
        warn: as for `listed`.

    Raises:
        DataError: there is none, or one of several places is no file.
    """
    if len(places) == 1 and not _is_image(places[0]):
        return listed(places[0], warn)
    for place in places:
        if not place.is_file():
            raise DataError(f"{place} is no file; expected image files, or one folder or list")
    absolute = [place.absolute() for place in places]
    root = Path(os.path.commonpath([place.parent for place in absolute]))
    paths = [(place.relative_to(root).as_posix(), 0) for place in absolute]
    return Files("images", root, [], [], (), paths, layout="single images")


def _is_image(place: Path) -> bool:
    return place.is_file() and place.suffix.lower() not in LISTS and not is_archive(place)


def listed(folder: Path, warn: Warn, *, has_labels: bool = False) -> Files:
    """Return the images of a folder or list.

    Args:
        warn: called with a message for each kind of files that is left out, hidden ones excepted.

    Raises:
        DataError: there is none; the message speaks of no dataset.
    """
    try:
        files = list_files("images", folder, has_labels=has_labels)
    except DataError as error:
        raise DataError(str(error).removeprefix("dataset images: ")) from error
    for each in files.left_out.list():
        if each.text != HIDDEN:
            warn(f"{each.count:,}, {each.text}: {', '.join(each.examples[:3])}")
    return files
