"""The folders of unpacked archives: their names, and the removal of old ones.

This module imports nothing else of the project, so that workers use it.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path


def keep_only(place: Path, images: Path) -> None:
    """Remove the folders of earlier contents of an archive.

    Args:
        place: the path that the name of each such folder begins with.
        images: the folder of its present images, or one in it.
    """
    remove(place, "unpacked", images)


def remove(place: Path, ending: str, kept: Path | None = None) -> None:
    """Remove the folders of an archive that end in `.unpacked` or `.unpacking`, but for one that holds `kept`."""
    # Names of datasets may hold dots: `birds` owns no folder of `birds.small`.
    name = re.compile(rf"{re.escape(place.name)}\.\w+\.{ending}")
    for folder in place.parent.iterdir() if place.parent.is_dir() else ():
        if name.fullmatch(folder.name) and not (kept and kept.is_relative_to(folder)):
            shutil.rmtree(folder, ignore_errors=True)
