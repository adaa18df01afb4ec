"""Full float32 precision for the ends of the heads, for similarities and for losses.

The choice of the nearest neighbour depends on differences that bfloat16 and TF32 round away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# The settings of matrix products that keep float32 exact; "none" is PyTorch's default.
_FULL = ("ieee", "none")


@contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Turn off autocast, TF32 and bfloat16 for float32 products inside the block.

    PyTorch has one setting for the whole process and each library of matrix products.  The block restores it at its
    end, and changes nothing if the program never set it.  The backward pass of the operations inside is not covered.

    Args:
        device_type: the device type whose autocast is turned off.
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
