"""Group a folder of photos that look alike, by the features of a trained network.

    wcl features JOB /data/photos -o features.csv
    python examples/similar_images.py features.csv --similarity 0.95

`wcl neighbours JOB PHOTO --in /data/photos` prints the photos that are most similar to one.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np


def read_features(path: Path) -> tuple[list[str], np.ndarray]:
    """Return the paths, and unit rows of features: (N, D)."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    features = np.array([row[1:] for row in rows], np.float32)
    return [row[0] for row in rows], features / np.linalg.norm(features, axis=1, keepdims=True)


def groups(features: np.ndarray, similarity: float) -> list[list[int]]:
    """Return the groups of rows that are linked by a cosine of at least `similarity`, large ones first."""
    unseen, result = set(range(len(features))), []
    while unseen:
        members = [min(unseen)]
        unseen.remove(members[0])
        for member in members:  # it grows meanwhile
            close = {int(each) for each in np.flatnonzero(features @ features[member] >= similarity)} & unseen
            members.extend(sorted(close))
            unseen -= close
        result.append(sorted(members))
    return sorted(result, key=len, reverse=True)


def main() -> None:
    """Print each group of at least two photos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("--similarity", type=float, default=0.95, help="smallest cosine within a group")
    options = parser.parse_args()

    paths, features = read_features(options.features)
    for members in groups(features, options.similarity):
        if len(members) > 1:
            print(f"{len(members)} alike: {', '.join(paths[member] for member in members)}")


if __name__ == "__main__":
    main()
