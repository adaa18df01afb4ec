"""The instance loss and the weak-label loss, as pure functions of unit embeddings.

Both are a mean over anchors i of

    logsumexp_{k visible}(a_i.k_k / t)  -  a_i.m_i / t

where m_i is the other view (instance loss) or the mean of the other members of i's component (weak-label loss).  So no
B x B mask of positives is needed, and rows are tiled: memory grows with B and not with B^2 above B = 4096.

Numerics: inputs and outputs are float32, and sums run in float64.  The two terms nearly cancel when t is small or rows
repeat, and float32 logits of size 1/t would have an error larger than a small loss.  Large batches hold their tiles in
float32 within the same tolerance, see `log_sum_exp`.  Autocast and TF32 are off.

Two views of three images, which are equal for the first image and orthogonal for the others:

    >>> z1 = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> z2 = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, -1.0]])
    >>> nt_xent(z1, z2, temperature=0.5)
    tensor(1.3669)
    >>> weak_label_loss(z1, torch.tensor([0, 0, 2]), temperature=0.5)  # the third image has no positive and adds 0
    tensor(0.2734)
    >>> swapped_weak_label_loss(z1, z2, temperature=0.5, labels=(torch.tensor([0, 0, 0]), torch.tensor([0, 0, 2])))
    tensor(0.6278)

The marks [P], [C] and [D] are explained in `wcl_core.methods`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wcl_core.methods.key_masks import ByImage, ByIndex, ByMask, KeyMask, label_sums
from wcl_core.methods.log_sum_exp import tiled_log_sum_exp
from wcl_core.methods.weak_labels import weak_labels
from wcl_core.precision import full_float32

# Up to this many pairs on a GPU, losses are computed from a whole B x K matrix in float64: there the number of calls
# counts, and not the work.
SMALL_GPU_PAIRS = 1024 * 1024


def nt_xent(
    z1: Tensor,
    z2: Tensor,
    temperature: float,
    *,
    decoupled: bool = False,
    mask_labels: tuple[Tensor, Tensor] | None = None,
    keys: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the instance loss NT-Xent (Chen et al., ICML 2020, https://arxiv.org/abs/2002.05709). [P] [C]

        L_NCE = -(1/2B) sum_i log( exp(z_i.z_p(i)/t) / sum_{k != i} exp(z_i.z_k/t) )

    where p(i) is the other view of i, and k runs over all other 2B - 1 embeddings.  Gradient flows into anchors and
    keys.  The options change the denominator only; an anchor that they leave without any key adds 0 [D].

    Args:
        z1: (B, D) unit rows, first view.
        z2: (B, D) unit rows, second view, same order.
        temperature: t > 0.
        decoupled: whether p(i) is left out of the denominator (decoupled contrastive loss; Yeh et al., ECCV 2022).
        mask_labels: weak labels y^1 and y^2, (B,) int64 >= 0 each.  For an anchor of one view, its same-label images by
            the OTHER view are masked among the keys of both views, except p(i) [D].
        keys: z^1 and z^2 of a momentum encoder, (B, D) unit rows each, which replace both views as positives and keys.
            They carry no gradient [D].

    Returns:
        A scalar, float32 (float64 for float64 inputs).

    Raises:
        ValueError: when the shapes differ or t is not positive.
    """
    _check_views(z1, z2, temperature)
    with full_float32(z1.device.type):
        z = torch.cat([z1, z2]).double()
        all_keys = z if keys is None else torch.cat(keys).detach().double()
        if _is_dense(z, all_keys) and mask_labels is None and not decoupled:
            own = torch.arange(len(z), device=z.device)[:, None]
            shares = _log_shares(z, all_keys, ByIndex(own), temperature)
            return as_output(-shares.gather(1, own.roll(len(z1), 0)).mean(), z1)
        positive = torch.cat([all_keys[len(z1) :], all_keys[: len(z1)]])
        normaliser = _instance_normaliser(z, all_keys, temperature, decoupled, mask_labels, z1.dtype == torch.float64)
        loss = normaliser - (z * positive).sum(1) / temperature
        return as_output(torch.where(normaliser.isneginf(), 0.0, loss).mean(), z1)


def _instance_normaliser(
    z: Tensor,
    keys: Tensor,
    temperature: float,
    decoupled: bool,
    view_labels: tuple[Tensor, Tensor] | None,
    is_exact: bool,
) -> Tensor:
    own = torch.arange(len(z), device=z.device)
    other = own.roll(len(z) // 2)
    if view_labels is None:
        index = torch.stack((own, other), dim=1) if decoupled else own[:, None]
        return tiled_log_sum_exp(z, keys, ByIndex(index), temperature, is_exact=is_exact)
    halves = []
    # The anchors of each view use the labels of the other view.
    for anchors, kept, labels in zip(z.chunk(2), other.chunk(2), reversed(view_labels), strict=True):
        excluded = ByImage(labels, torch.cat((labels, labels)), None if decoupled else kept)
        halves.append(tiled_log_sum_exp(anchors, keys, excluded, temperature, is_exact=is_exact))
    return torch.cat(halves)


def swapped_weak_label_loss(
    u1: Tensor,
    u2: Tensor,
    temperature: float,
    detach_keys: bool = True,
    *,
    labels: tuple[Tensor, Tensor] | None = None,
    keys: tuple[Tensor, Tensor] | None = None,
    excluded: KeyMask | None = None,
) -> Tensor:
    """Return the weak-label loss with swapped labels, (L_sup(U1, y2) + L_sup(U2, y1)) / 2. [P] [C]

    Each view is trained with the labels of the other one; L_sup is `weak_label_loss`.

    Args:
        u1: (B, D) unit rows, first view, B >= 2.
        u2: (B, D) unit rows, second view, same order.
        temperature: t > 0.
        detach_keys: whether the keys carry no gradient [C].
        labels: y^1 and y^2 of the keys, (K,) int64 each, the batch first; by default `weak_labels` of each view.
        keys: (K, D) unit rows of each view, the batch first, then a queue; needs `labels`.  By default the batch.
        excluded: with `keys`, the keys that an anchor does not see.

    Returns:
        A scalar, float32 (float64 for float64 inputs).

    Raises:
        ValueError: when the shapes differ or t is not positive.
    """
    _check_views(u1, u2, temperature)
    y1, y2 = (weak_labels(u1), weak_labels(u2)) if labels is None else labels
    if keys is None:
        first = weak_label_loss(u1, y2, temperature, detach_keys=detach_keys)
        second = weak_label_loss(u2, y1, temperature, detach_keys=detach_keys)
        return (first + second) / 2
    terms = [
        weak_label_loss(u, y[: len(u)], temperature, keys=k, key_labels=y, excluded=excluded, detach_keys=detach_keys)
        for u, k, y in ((u1, keys[0], y2), (u2, keys[1], y1))
    ]
    return (terms[0] + terms[1]) / 2


def weak_label_loss(
    u: Tensor,
    labels: Tensor,
    temperature: float,
    *,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    excluded: Tensor | KeyMask | None = None,
    detach_keys: bool = True,
) -> Tensor:
    """Return the supervised contrastive loss under weak labels. [P] [C]

        L_sup = -(1/B) sum_i 1/|P(i)| sum_{j in P(i)} log( exp(u_i.k_j/t) / sum_{k visible} exp(u_i.k_k/t) )

    where P(i) are the visible keys with i's label (Khosla et al., NeurIPS 2020, https://arxiv.org/abs/2004.11362).  By
    default the keys are `u`, and each anchor's own row is hidden.  An anchor without a positive adds 0, and the mean
    stays over B [D]; with labels from `weak_labels` every anchor has a positive.

    Args:
        u: (B, D) unit rows, the anchors.
        labels: (B,) integers, the anchors' labels.
        temperature: t > 0.
        keys: (K, D) unit rows, for several ranks or a queue; needs `key_labels`, and `excluded` to hide keys.
        key_labels: (K,) integers.
        excluded: the hidden keys: (B,) int64, one key of each anchor; or (B, K) bool, True where hidden; or a
            `KeyMask`.  With `keys` no key is hidden by default.
        detach_keys: whether the keys, and so the positives, carry no gradient [C].

    Returns:
        A scalar, float32 (float64 for float64 inputs).

    Raises:
        ValueError: when shapes do not fit, t is not positive, or only one of `keys` and `key_labels` is given.
    """
    if (keys is None) != (key_labels is None):
        raise ValueError("weak_label_loss got only one of keys and key_labels; pass both or neither")
    if keys is None or key_labels is None:
        keys, key_labels = u, labels
        if excluded is None:
            excluded = torch.arange(len(u), device=u.device)
    _check_keys(u, labels, keys, key_labels, excluded, temperature)
    hidden = _as_key_mask(excluded)
    with full_float32(u.device.type):
        anchors = u.double()
        # One conversion for both, if they are the same rows.
        all_keys = (anchors if keys is u else keys.double()).detach() if detach_keys else keys.double()
        is_dense = _is_dense(anchors, all_keys)
        if is_dense and isinstance(hidden, ByIndex) and hidden.index.shape[1] < len(keys):
            shares = _log_shares(anchors, all_keys, hidden, temperature)
            is_positive = (labels[:, None] == key_labels) & (shares > -torch.inf)
            total = torch.where(is_positive, shares, 0.0).sum(1)
            return as_output(-(total / is_positive.sum(1).clamp(min=1)).mean(), u)
        normaliser = tiled_log_sum_exp(anchors, all_keys, hidden, temperature, is_exact=u.dtype == torch.float64)
        positive_mean = dense_positive_mean if is_dense else segment_positive_mean
        mean, has_positive = positive_mean(labels, all_keys, key_labels, hidden)
        loss = normaliser - (anchors * mean).sum(1) / temperature
        return as_output(torch.where(has_positive, loss, 0.0).mean(), u)


def _is_dense(anchors: Tensor, keys: Tensor) -> bool:
    return anchors.is_cuda and len(anchors) * len(keys) <= SMALL_GPU_PAIRS


def _log_shares(anchors: Tensor, keys: Tensor, hidden: ByIndex, temperature: float) -> Tensor:
    """Return log( exp(a_i.k_j/t) / sum_{k visible} exp(a_i.k_k/t) ), (B, K) float64, -inf for hidden keys.

    Args:
        anchors: (B, D) float64, unit rows; gradient flows.
        keys: (K, D) float64, unit rows; gradient flows.
        hidden: fewer keys than there are, so that each anchor sees one and no row is NaN.
        temperature: t > 0.
    """
    return hidden.hide_((anchors / temperature) @ keys.T, slice(None)).log_softmax(1)


def segment_positive_mean(
    labels: Tensor, keys: Tensor, key_labels: Tensor, excluded: KeyMask | None
) -> tuple[Tensor, Tensor]:
    """Return the mean of each anchor's positives, (B, D), 0 without one, and whether it has any, (B,).

    Hidden keys are subtracted from the sum over the whole label; in float64 this costs no visible precision.
    """
    total, count = label_sums(labels, keys, key_labels)
    if excluded is not None:
        removed, num_removed = excluded.positives(labels, keys, key_labels)
        total, count = total - removed, count - num_removed
    return torch.where((count > 0)[:, None], total / count.clamp(min=1)[:, None], 0.0), count > 0


def dense_positive_mean(
    labels: Tensor, keys: Tensor, key_labels: Tensor, excluded: KeyMask | None
) -> tuple[Tensor, Tensor]:
    """Return the same as `segment_positive_mean` in a third of its calls, with a (B, K) matrix of shares.

    The calls cost more than the work for small batches on a GPU.
    """
    shares = torch.where(labels[:, None] == key_labels, 0.0, -torch.inf)
    if excluded is not None:
        excluded.hide_(shares, slice(None))
    shares = shares.softmax(1, dtype=keys.dtype)  # 1/|P(i)| for each positive; NaN for an anchor without one
    is_alone = shares[:, :1].isnan()
    return shares.masked_fill_(is_alone, 0.0) @ keys, ~is_alone.squeeze(1)


def _as_key_mask(excluded: Tensor | KeyMask | None) -> KeyMask | None:
    if not isinstance(excluded, Tensor):
        return excluded
    return ByMask(excluded) if excluded.dtype == torch.bool else ByIndex(excluded[:, None])


def as_output(loss: Tensor, like: Tensor) -> Tensor:
    """Return the loss as float32, or as float64 for float64 inputs."""
    return loss if like.dtype == torch.float64 else loss.float()


def _check_views(a: Tensor, b: Tensor, temperature: float) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"the views have shapes {tuple(a.shape)} and {tuple(b.shape)}; expected one shape (B, D)")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a positive number")


def _check_keys(
    u: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    excluded: Tensor | KeyMask | None,
    temperature: float,
) -> None:
    if u.ndim != 2 or keys.ndim != 2 or u.shape[1] != keys.shape[1]:
        raise ValueError(
            f"anchors and keys have shapes {tuple(u.shape)} and {tuple(keys.shape)}; expected (B, D) and (K, D)"
        )
    if labels.shape != u.shape[:1] or key_labels.shape != keys.shape[:1]:
        raise ValueError(
            f"labels and key_labels have shapes {tuple(labels.shape)} and {tuple(key_labels.shape)}; "
            f"expected {tuple(u.shape[:1])} and {tuple(keys.shape[:1])}"
        )
    if isinstance(excluded, Tensor) and (
        excluded.shape != ((len(u), len(keys)) if excluded.dtype == torch.bool else (len(u),))
    ):
        raise ValueError(
            f"excluded has the shape {tuple(excluded.shape)}; "
            f"expected ({len(u)},) int64 or ({len(u)}, {len(keys)}) bool"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a positive number")
