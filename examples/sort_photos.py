"""Copy photos into a folder for each class, by a classifier that was fitted on a few labelled ones.

    wcl classify fit JOB /data/labelled -o classifier.safetensors
    wcl classify predict classifier.safetensors /data/photos -o classes.csv
    python examples/sort_photos.py classes.csv /data/photos /data/sorted --probability 0.8

Photos with a lower probability go into the folder `unsure`.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections import Counter
from pathlib import Path


def main() -> None:
    """Copy the photos, and print how many went into each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classes", type=Path, help="the table of wcl classify predict")
    parser.add_argument("photos", type=Path)
    parser.add_argument("target", type=Path, help="a folder that is not there yet")
    parser.add_argument("--probability", type=float, default=0.8, help="smallest probability of a class")
    options = parser.parse_args()

    options.target.mkdir(parents=True)
    counts: Counter[str] = Counter()
    with options.classes.open(newline="") as file:
        for row in csv.DictReader(file):
            name = row["class"] if float(row["probability"]) >= options.probability else "unsure"
            place = options.target / name / row["path"]  # with its folders, since names may repeat
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(options.photos / row["path"], place)
            counts[name] += 1
    for name, count in counts.most_common():
        print(f"{count:,} {name}")


if __name__ == "__main__":
    main()
