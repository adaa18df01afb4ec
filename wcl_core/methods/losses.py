"""The instance loss and the weak-label loss.

Pure functions of unit embeddings.  Both are a mean over anchors of

    logsumexp_{k allowed}(a_i.k_k / t)  -  a_i.m_i / t

with m_i the other view (instance loss) or the mean of the other members of i's component (weak-label loss), so no
B x B mask of positives exists.  Inputs and outputs are float32; inside, sums run in float64: the two terms nearly
cancel when t is small or rows repeat, and float32 logits of size 1/t would leave an error larger than a small loss.
Large batches hold their tiles in float32 (`log_sum_exp`), within the same tolerance.
Autocast and TF32 are off throughout.  Rows are tiled, so memory grows with B and not with B^2 above B = 4096.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wcl_core.methods.key_masks import ByIndex, ByMask, ByName, Exclusion, label_sums
from wcl_core.methods.log_sum_exp import tiled_log_sum_exp
from wcl_core.methods.weak_labels import weak_labels
from wcl_core.precision import full_float32


def nt_xent(
    z1: Tensor,
    z2: Tensor,
    temperature: float,
    *,
    decoupled: bool = False,
    mates: tuple[Tensor, Tensor] | None = None,
    keys: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Instance loss (NT-Xent; Chen et al., ICML 2020). [C]

    L_NCE = -(1/2B) sum_i log( exp(z_i.z_p(i)/t) / sum_{k != i} exp(z_i.z_k/t) ), with p(i) the other view of i and k
    over all other 2B - 1 embeddings; gradient flows into anchors and keys.  The options change the denominator alone,
    and an anchor they leave without any key adds 0 [D].

    Args:
        z1: (B, D) unit rows, first view.
        z2: (B, D) unit rows, second view, same order.
        temperature: t > 0.
        decoupled: whether p(i) leaves the denominator (decoupled contrastive loss; Yeh et al., ECCV 2022).
        mates: (B,) int64 >= 0 each, the labels y^1 and y^2: for an anchor of one view the images that share its label
            by the OTHER view leave the keys of both views, p(i) excepted [D].
        keys: (B, D) unit rows each, what stands for both views among positives and keys, without gradient: the
            embeddings of a momentum encoder [D].

    Returns:
        A scalar, float32 (float64 for float64 inputs).
    """
    _check_views(z1, z2, temperature)
    with full_float32(z1.device.type):
        z = torch.cat([z1, z2]).double()
        all_keys = z if keys is None else torch.cat(keys).detach().double()
        positive = torch.cat([all_keys[len(z1) :], all_keys[: len(z1)]])
        normaliser = _instance_normaliser(z, all_keys, temperature, decoupled, mates, z1.dtype == torch.float64)
        loss = normaliser - (z * positive).sum(1) / temperature
        return as_output(torch.where(normaliser.isneginf(), 0.0, loss).mean(), z1)


def _instance_normaliser(
    z: Tensor,
    keys: Tensor,
    temperature: float,
    decoupled: bool,
    mates: tuple[Tensor, Tensor] | None,
    is_exact: bool,
) -> Tensor:
    own = torch.arange(len(z), device=z.device)
    other = own.roll(len(z) // 2)
    if mates is None:
        index = torch.stack((own, other), dim=1) if decoupled else own[:, None]
        return tiled_log_sum_exp(z, keys, ByIndex(index), temperature, is_exact=is_exact)
    halves = []
    # Each view's anchors go by the labels of the other one.
    for anchors, kept, labels in zip(z.chunk(2), other.chunk(2), reversed(mates), strict=True):
        excluded = ByName(labels, torch.cat((labels, labels)), None if decoupled else kept)
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
    excluded: Exclusion | None = None,
) -> Tensor:
    """Weak-label loss with each view's labels taken from the other: (L_sup(U1, y2) + L_sup(U2, y1)) / 2. [C]

    Args:
        u1: (B, D) unit rows, first view, B >= 2.
        u2: (B, D) unit rows, second view, same order.
        temperature: t > 0.
        detach_keys: whether the keys carry no gradient, as in the released code.
        labels: y^1 and y^2, (K,) int64 each, those of the keys with the batch first; without them `weak_labels`.
        keys: (K, D) unit rows of both views, the batch first, then a queue; needs `labels`. Without them the batch.
        excluded: with `keys`, which of them an anchor does not see.

    Returns:
        A scalar, float32 (float64 for float64 inputs).
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
    excluded: Tensor | Exclusion | None = None,
    detach_keys: bool = True,
) -> Tensor:
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020) under weak labels. [C]

    L_sup = -(1/B) sum_i 1/|P(i)| sum_{j in P(i)} log( exp(u_i.k_j/t) / sum_{k allowed} exp(u_i.k_k/t) ), with P(i)
    the allowed keys of i's label.  Without `keys` they are `u` itself and every anchor's own row is not allowed.
    An anchor without a positive adds 0, and the mean is still over B [D]; components never leave one without.

    Args:
        u: (B, D) unit rows, the anchors.
        labels: (B,) integers, the anchors' labels.
        temperature: t > 0.
        keys: (K, D) unit rows, for several ranks or a queue; with it, `key_labels`, and `excluded` as needed.
        key_labels: (K,) integers.
        excluded: what is neither positive nor key: (B,) int64, one key of each anchor, or (B, K) bool, or any
            `Exclusion`. With `keys` nothing is left out unless this says so.
        detach_keys: whether the keys carry no gradient, as in the released code; positives are keys too.

    Returns:
        A scalar, float32 (float64 for float64 inputs).

    Raises:
        ValueError: when shapes do not fit or only one of `keys` and `key_labels` is given.
    """
    if (keys is None) != (key_labels is None):
        raise ValueError("keys and key_labels come together")
    if keys is None or key_labels is None:
        keys, key_labels = u, labels
        if excluded is None:
            excluded = torch.arange(len(u), device=u.device)
    _check_keys(u, labels, keys, key_labels, excluded, temperature)
    hidden = _as_exclusion(excluded)
    with full_float32(u.device.type):
        anchors = u.double()
        all_keys = (keys.detach() if detach_keys else keys).double()
        normaliser = tiled_log_sum_exp(anchors, all_keys, hidden, temperature, is_exact=u.dtype == torch.float64)
        mean, count = _positive_mean(labels, all_keys, key_labels, hidden)
        loss = normaliser - (anchors * mean).sum(1) / temperature
        return as_output(torch.where(count > 0, loss, 0.0).mean(), u)


def _positive_mean(
    labels: Tensor, keys: Tensor, key_labels: Tensor, excluded: Exclusion | None
) -> tuple[Tensor, Tensor]:
    """Mean of each anchor's positives, (B, D), and their number, (B,).

    What is excluded is taken away from the label's whole sum; in float64 that costs no visible precision.
    """
    total, count = label_sums(labels, keys, key_labels)
    if excluded is not None:
        removed, num_removed = excluded.positives(labels, keys, key_labels)
        total, count = total - removed, count - num_removed
    return torch.where((count > 0)[:, None], total / count.clamp(min=1)[:, None], 0.0), count


def _as_exclusion(excluded: Tensor | Exclusion | None) -> Exclusion | None:
    if not isinstance(excluded, Tensor):
        return excluded
    return ByMask(excluded) if excluded.dtype == torch.bool else ByIndex(excluded[:, None])


def as_output(loss: Tensor, like: Tensor) -> Tensor:
    """The loss as float32, or as it is for float64 inputs."""
    return loss if like.dtype == torch.float64 else loss.float()


def _check_views(a: Tensor, b: Tensor, temperature: float) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"two views need one shape (B, D), got {tuple(a.shape)} and {tuple(b.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def _check_keys(
    u: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    excluded: Tensor | Exclusion | None,
    temperature: float,
) -> None:
    if u.ndim != 2 or keys.ndim != 2 or u.shape[1] != keys.shape[1]:
        raise ValueError(f"anchors (B, D) and keys (K, D) do not fit: {tuple(u.shape)} and {tuple(keys.shape)}")
    if labels.shape != u.shape[:1] or key_labels.shape != keys.shape[:1]:
        raise ValueError("labels need one integer for each row")
    if isinstance(excluded, Tensor) and (
        excluded.shape != ((len(u), len(keys)) if excluded.dtype == torch.bool else (len(u),))
    ):
        raise ValueError(f"excluded has the shape {tuple(excluded.shape)}; see the docstring")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
