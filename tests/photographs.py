"""A folder of large photographs, which take long to decode and none to make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

_SIZE = (4000, 3000)  # pixels; a core decodes a few of them a second


def photographs(root: Path, count: int) -> Path:
    """Make a folder of two classes from one JPEG file and links to it."""
    coarse = np.random.default_rng(0).integers(0, 256, (_SIZE[1] // 8, _SIZE[0] // 8, 3), dtype=np.uint8)
    first = root / "a" / "0.jpg"
    for name in "ab":
        (root / name).mkdir(parents=True)
    Image.fromarray(coarse).resize(_SIZE).save(first, quality=85)
    for number in range(1, count):
        (root / "ab"[number % 2] / f"{number}.jpg").hardlink_to(first)
    return root
