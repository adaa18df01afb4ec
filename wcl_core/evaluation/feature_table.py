"""Tables of features: the one writer of `wcl features`, for a folder of images and for a registered dataset.

features.csv        a header, then a row for each image: its texts (path; of a dataset also split and label), f0, ...
features.parquet    the same columns; it needs pyarrow
features.npy        (N, D) float32; features.txt beside it has the texts of each row, with tabs between them
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from wcl_core.files import write_bytes

ENDINGS = (".csv", ".parquet", ".npy")


def check_target(out: Path) -> None:
    """Raise if no table can be written under a name.

    Raises:
        ValueError: its ending is another one, or the library for it is absent.
    """
    if out.suffix.lower() not in ENDINGS:
        raise ValueError(f"{out}: expected a name that ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    if out.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise ValueError(
            f"{out} needs pyarrow; install it with pip install 'wcl-service[parquet]', or write a .csv file"
        )


def write_feature_table(out: Path, texts: Mapping[str, Sequence[str]], features: Tensor) -> None:
    """Write a table, which becomes visible whole.

    Args:
        out: `.csv`, `.parquet` or `.npy`, as `check_target` allows.
        texts: the columns before the features, by name; a text for each image.
        features: (N, D) float32.
    """
    rows = features.numpy()
    header = [*texts, *(f"f{number}" for number in range(rows.shape[1]))]
    by_image = zip(*texts.values(), strict=True)
    if out.suffix.lower() == ".csv":
        pairs = zip(by_image, rows, strict=True)
        write_table(out, header, ([*names, *(f"{value:.9g}" for value in row.tolist())] for names, row in pairs))
    elif out.suffix.lower() == ".parquet":
        write_bytes(out, _parquet(header, texts, rows))
    else:
        content = io.BytesIO()
        np.save(content, rows)
        write_bytes(out, content.getvalue())
        write_bytes(listing_of(out), "".join("\t".join(names) + "\n" for names in by_image).encode())


def listing_of(out: Path) -> Path:
    """Return the file beside a `.npy` file that has the texts of its rows."""
    return out.with_suffix(".txt")


def write_table(out: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, which becomes visible whole."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_bytes(out, text.getvalue().encode())


def _parquet(
    header: Sequence[str], texts: Mapping[str, Sequence[str]], features: np.ndarray[Any, np.dtype[np.float32]]
) -> bytes:
    import pyarrow
    from pyarrow import parquet

    columns = [*(pyarrow.array(list(column)) for column in texts.values()), *map(pyarrow.array, features.T)]
    content = io.BytesIO()
    parquet.write_table(pyarrow.table(columns, names=list(header)), content)
    return content.getvalue()
