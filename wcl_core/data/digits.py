"""The handwritten digits of scikit-learn, from the file of its package: neither it nor torch is imported."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wcl_core.data.images import DataError, Description, array_digest, class_counts
from wcl_core.data.samples import samples_of_images

NAME = "digits"
CLASSES = tuple(map(str, range(10)))
_Array = np.ndarray[Any, Any]


class Digits(NamedTuple):
    """Images (N, 3, 8, 8) uint8 and labels (N,) int64 of both splits: every fifth image of each class is for tests."""

    train: tuple[_Array, _Array]
    test: tuple[_Array, _Array]


@cache
def load_digits() -> Digits:
    """Return the 1,797 images of 8x8 pixels and 17 grey levels.

    Raises:
        DataError: scikit-learn is not installed.
    """
    package = find_spec("sklearn")
    folders = package and package.submodule_search_locations
    if not folders:
        raise DataError(f"dataset {NAME}: scikit-learn is not installed")
    rows = np.loadtxt(Path(folders[0]) / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    labels = rows[:, -1].astype(np.int64)
    grey = (rows[:, :-1] * (255 / 16)).round().astype(np.uint8).reshape(-1, 1, 8, 8)
    images = np.ascontiguousarray(np.broadcast_to(grey, (len(grey), 3, 8, 8)))
    is_test = np.zeros(len(labels), bool)
    for label in range(len(CLASSES)):
        is_test[np.flatnonzero(labels == label)[::5]] = True
    return Digits((images[~is_test], labels[~is_test]), (images[is_test], labels[is_test]))


def describe_digits() -> Description:
    """Return what `wcl_core.data.describe` returns.

    Raises:
        DataError: as `load_digits`.
    """
    train, test = load_digits()
    labels = {"train": train[1].tolist(), "test": test[1].tolist()}
    return Description(
        NAME,
        "builtin",
        array_digest(*train, *test),
        {which: len(some) for which, some in labels.items()},
        CLASSES,
        class_counts(labels, len(CLASSES)),
        samples=samples_of_images(*train, len(CLASSES)),
    )
