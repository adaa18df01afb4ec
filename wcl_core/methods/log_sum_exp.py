"""Logsumexp over the keys of each anchor, in tiles, so that memory grows with B and not with B^2 above B = 4096.

All losses are built on it.  A `KeyMask` hides keys from an anchor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wcl_core.methods.key_masks import KeyMask
from wcl_core.precision import full_float32

# Number of pairs whose logits are held at once: all pairs up to B = 4096, tiles of rows above.
MAX_TILE_PAIRS = 4096 * 4096
# On a CPU a tile stays in the cache between the passes over it.
CPU_TILE_PAIRS = 2**22
# From this many pairs on, logits are float32; see `_tile_dtype`.
FLOAT32_FROM_PAIRS = 1024 * 1024
FLOAT32_MIN_TEMPERATURE = 0.05


def tiled_log_sum_exp(
    anchors: Tensor, keys: Tensor, excluded: KeyMask | None, temperature: float, *, is_exact: bool = False
) -> Tensor:
    """Return logsumexp_{k visible}(a_i.k_k / t) of each anchor, -inf for an anchor without a visible key.

    Args:
        anchors: (B, D) float64, unit rows; gradient flows.
        keys: (K, D) float64, unit rows; gradient flows.
        excluded: the keys that an anchor does not see.
        temperature: t > 0.
        is_exact: whether logits are float64 at any number of pairs.

    Returns:
        (B,) float64.
    """
    dtype = torch.float64 if is_exact else _tile_dtype(anchors, keys, temperature)
    normaliser: Tensor = _TiledLogSumExp.apply(anchors, keys, excluded, temperature, dtype)
    return normaliser


class _TiledLogSumExp(torch.autograd.Function):
    """logsumexp_{k visible}(a_i.k_k / t) of each anchor, (B,) float64, one tile of rows at a time.

    With detached keys the gradient has a closed form, softmax(a_i.K / t) K / t, which the forward pass computes too.
    With keys that carry gradient the backward pass computes the tiles once more instead of keeping them.
    """

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, keys: Tensor, excluded: KeyMask | None, temperature: float, dtype: torch.dtype
    ) -> Tensor:
        normaliser = anchors.new_empty(len(anchors))
        is_closed = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        gradient = torch.empty_like(anchors) if is_closed else None
        scaled, columns = (anchors / temperature).to(dtype), keys.to(dtype)
        for rows in _tiles(anchors, keys):
            tile = _tile(scaled, columns, excluded, rows)
            top_keys = keys.index_select(0, tile.top).masked_fill_(tile.is_alone, 0.0)
            top_logits = (anchors[rows] * top_keys).sum(1, keepdim=True) / temperature
            log_sum = top_logits + tile.others.log1p()
            normaliser[rows] = log_sum.masked_fill_(tile.is_alone, -torch.inf).squeeze(1)
            if gradient is not None:
                gradient[rows] = (tile.ratios @ columns + top_keys) / ((1 + tile.others) * temperature)
        ctx.temperature, ctx.excluded, ctx.dtype = temperature, excluded, dtype
        ctx.save_for_backward(*((gradient,) if is_closed else (None, anchors, keys)))
        return normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        closed, *rest = ctx.saved_tensors
        if closed is not None:
            return grad[:, None] * closed, None, None, None, None
        anchors, keys = rest
        grad_anchors, grad_keys = torch.empty_like(anchors), torch.zeros_like(keys)
        scaled, columns = (anchors / ctx.temperature).to(ctx.dtype), keys.to(ctx.dtype)
        with full_float32(grad.device.type):  # the settings of the forward pass do not reach the backward pass
            for rows in _tiles(anchors, keys):
                tile = _tile(scaled, columns, ctx.excluded, rows)
                weights = tile.ratios.scatter_(1, tile.top[:, None], (~tile.is_alone).to(ctx.dtype))
                weights.mul_(grad[rows, None] / (1 + tile.others))
                grad_anchors[rows] = (weights @ columns).to(keys.dtype) / ctx.temperature
                grad_keys += weights.T @ scaled[rows]
        return grad_anchors, grad_keys, None, None, None


def _tile_dtype(anchors: Tensor, keys: Tensor, temperature: float) -> torch.dtype:
    """Return float64 for small batches, where a loss may be tiny and its gradient large, and float32 for large ones.

    In float32, dot products of unit rows have errors of about 1e-7, so logits of 1e-7 / t and gradients of
    1e-7 / (t^2 B), which is below the tolerance.  A small loss stays exact, because the largest logit of a row is
    taken in float64.
    """
    is_large = len(anchors) * len(keys) >= FLOAT32_FROM_PAIRS and temperature >= FLOAT32_MIN_TEMPERATURE
    return torch.float32 if is_large else torch.float64


def _tiles(anchors: Tensor, keys: Tensor) -> list[slice]:
    pairs = MAX_TILE_PAIRS if anchors.is_cuda else min(MAX_TILE_PAIRS, CPU_TILE_PAIRS)
    size = max(1, pairs // len(keys))
    return [slice(start, min(start + size, len(anchors))) for start in range(0, len(anchors), size)]


@dataclass(frozen=True)
class _Tile:
    """R anchors against all keys, relative to the largest logit of each anchor.

    The largest logit itself is left out of `others`.  If a loss is small, it equals about `others`, which 1 + others
    would round away.

    Attributes:
        ratios: (R, K), exp(logit - largest logit); 0 for hidden keys and for the anchor's largest.
        top: (R,) int64, the key with the largest logit.
        others: (R, 1) float64, the sum of the ratios.
        is_alone: (R, 1) bool, whether an anchor sees no key; its ratios are 0.
    """

    ratios: Tensor
    top: Tensor
    others: Tensor
    is_alone: Tensor


def _tile(scaled: Tensor, keys: Tensor, excluded: KeyMask | None, rows: slice) -> _Tile:
    """Return the ratios of a tile.

    Hidden keys are set to -inf before the exponential; subtracting them afterwards would give NaN at small t.

    Args:
        scaled: (B, D) anchors divided by t.
        keys: (K, D) keys.
        excluded: the keys that an anchor does not see.
        rows: the R anchors of this tile.
    """
    logits = scaled[rows] @ keys.T
    if excluded is not None:
        excluded.hide_(logits, rows)
    peak, top = logits.max(1, keepdim=True)
    # The finite peak of an anchor without a visible key gives it ratios 0, not NaN; it changes no other row.
    ratios = logits.sub_(peak.clamp(min=torch.finfo(logits.dtype).min)).exp_().scatter_(1, top, 0.0)
    return _Tile(ratios, top.squeeze(1), ratios.sum(1, keepdim=True).double(), peak == -torch.inf)
