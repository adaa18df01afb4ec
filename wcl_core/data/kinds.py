"""The kinds of datasets by their paths: image folders, lists of images, archives of these, and packed files.

Lists and archives count as folders: their images are files of a folder that is read in another way.  This module
imports nothing else of the project, so that workers, servers and the command line use it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

DatasetKind = Literal["builtin", "folder", "packed"]
LISTS = frozenset({".csv", ".tsv", ".txt", ".lst"})
HIDDEN = "hidden files and folders, and those of systems"  # remark on what is left out without a loss
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


def is_archive(path: Path) -> bool:
    """Return whether a path is that of an archive, by its ending."""
    return path.name.lower().endswith(ARCHIVES) and not path.is_dir()


def kind_of(path: Path | None) -> DatasetKind:
    """Return the kind of the dataset at a path: builtin without a path, packed for other files than lists and archives.

    A path without a file is that of a folder, unless its name ends in `.wclpack`.
    """
    if path is None:
        return "builtin"
    if path.is_file() and path.suffix.lower() not in LISTS and not is_archive(path):
        return "packed"
    return "packed" if path.suffix == ".wclpack" else "folder"
