"""How often each test image was classified correctly, packed as text, so that two results compare in pairs.

This module does not import torch.
"""

from __future__ import annotations

import base64
import binascii
import sys
import zlib
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

KEY: Final = "per_image"  # in the details of an evaluation
_BYTES = 2  # of a count, little-endian


class Pairs(NamedTuple):
    """Sums over the images of the difference of two shares, each from 0 to 1.

    Attributes:
        images: their number.
        total: of the differences.
        squares: of their squares.
    """

    images: int
    total: float
    squares: float


def packed(counts: Sequence[int], trials: int = 1) -> dict[str, Any]:
    """Pack the number of correct classifications of each test image, in the order of the split.

    Args:
        counts: from 0 to `trials`, by image.
        trials: classifications of each image, at most 65,535.
    """
    values = array("H", counts)
    if sys.byteorder == "big":
        values.byteswap()
    return {"correct": base64.b64encode(zlib.compress(values.tobytes(), 9)).decode(), "trials": trials}


def pairs(ours: Any, others: Any, count: int) -> Pairs | None:
    """Return the sums of `ours - others` over the images; None if one of them is no packed result of so many images.

    Args:
        ours, others: as `packed` returned them, or anything else from a database.
        count: of the images.
    """
    packs = [each for each in (ours, others) if isinstance(each, dict)]
    texts = [text for each in packs if isinstance(text := each.get("correct"), str)]
    trials = [number for each in packs if isinstance(number := each.get("trials"), int) and number > 0]
    return _pairs(texts[0], texts[1], trials[0], trials[1], count) if len(texts) == len(trials) == 2 else None


@lru_cache(maxsize=512)
def _pairs(text: str, other_text: str, trials: int, other_trials: int, count: int) -> Pairs | None:
    ours, others = _counts(text, count), _counts(other_text, count)
    if ours is None or others is None:
        return None
    differences = [mine / trials - other / other_trials for mine, other in zip(ours, others, strict=True)]
    return Pairs(count, sum(differences), sum(each * each for each in differences))


def _counts(text: str, count: int) -> array[int] | None:
    """Return the counts by image; None for text that does not hold so many."""
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), count * _BYTES + 1)
    except (binascii.Error, zlib.error):
        return None
    if len(content) != count * _BYTES:
        return None
    values = array("H", content)
    if sys.byteorder == "big":
        values.byteswap()
    return values
