"""Where products of float32 rows have to be float32: the heads' ends, similarities and losses.

Which neighbour is the nearest hangs on differences that bfloat16 and TF32 round away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# A product's setting that leaves float32 as it is; by default nothing is set.
_FULL = ("ieee", "none")


@contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Neither autocast nor TF32 nor bfloat16 reaches a float32 product inside, whatever the program chose.

    PyTorch keeps that choice for the whole process and for each library of products; the choice is back at the end, and
    in the usual case, where nobody made one, nothing is touched.  The backward pass of what runs inside is not inside.

    Args:
        device_type: whose autocast is turned off.
    """
    libraries = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    reduced = [(library, library.fp32_precision) for library in libraries if library.fp32_precision not in _FULL]
    for library, _ in reduced:
        library.fp32_precision = "ieee"
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for library, chosen in reduced:
            library.fp32_precision = chosen
