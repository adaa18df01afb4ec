"""Monitors: numbers that describe a representation by one batch of embeddings, without training.

Pure functions: tensors in, floats out, no gradient, float64 inside.  `wcl_core.training.monitor_batch` applies them to
the monitor batch at epoch ends while a run trains; evaluation jobs do not use them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wcl_core.methods.heads import normalise

_RANKME_EPS = 1e-7


@torch.no_grad()
def alignment(a: Tensor, b: Tensor) -> float:
    """Return the mean squared distance of positive pairs, E |a_i - b_i|^2 (Wang & Isola, ICML 2020; alpha = 2).

    Args:
        a: (B, D) unit rows, one view.
        b: (B, D) unit rows, the other view, same order.

    Returns:
        In [0, 4]; 0 if the views agree, as they also do in a collapsed representation.
    """
    return float((a.double() - b.double()).square().sum(dim=1).mean())


@torch.no_grad()
def uniformity(x: Tensor) -> float:
    """Return log of the mean over pairs i < j of exp(-2 |x_i - x_j|^2) (Wang & Isola, ICML 2020; t = 2).

    Args:
        x: (B, D) unit rows, B >= 2.

    Returns:
        In [-8, 0]; about -4 for rows spread evenly over a sphere of many dimensions, 0 for equal rows.

    Raises:
        ValueError: there are fewer than two rows.
    """
    if len(x) < 2:
        raise ValueError(f"uniformity needs at least 2 rows, got {len(x)}")
    exponents = -2 * torch.pdist(x.double()).square()
    return float(exponents.logsumexp(0)) - math.log(len(exponents))


@torch.no_grad()
def rankme(x: Tensor) -> float:
    """Return the effective rank: exp of the entropy of the normalised singular values (RankMe; Garrido, ICML 2023).

    p_k = sigma_k / sum sigma + 1e-7, rows neither centred nor normalised, as in the paper.

    Args:
        x: (B, D) floats, not all zero.

    Returns:
        From 1, a single direction, to min(B, D); NaN if a value is not finite.
    """
    if not bool(torch.isfinite(x).all()):
        return math.nan
    singular = torch.linalg.svdvals(x.double())
    p = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny) + _RANKME_EPS
    return float(torch.exp(-(p * p.log()).sum()))


@torch.no_grad()
def deviation(x: Tensor) -> float:
    """Return the mean over dimensions of the rows' standard deviation, times sqrt(D) (SimSiam; Chen & He, CVPR 2021).

    Args:
        x: (B, D) floats, B >= 2; rows are normalised first.

    Returns:
        About 1 for rows spread evenly over the sphere, where each deviation is 1 / sqrt(D); 0 for equal rows.
    """
    return float(normalise(x.double()).std(dim=0).mean()) * math.sqrt(x.shape[1])


@torch.no_grad()
def adjusted_mutual_information(labels: Tensor, classes: Tensor) -> float:
    """Return the mutual information beyond that of random labellings of equal sizes (Vinh et al., JMLR 2010).

    AMI = (MI - E[MI]) / ((H(labels) + H(classes)) / 2 - E[MI]).  Raw NMI misleads here: random groups of four among
    1,000 classes reach .84.  It is computed on the host: for epoch ends, not for steps.  scikit-learn computes the
    same, and its import would double what each run copies at its start.

    Args:
        labels: (B,) integers.
        classes: (B,) integers.

    Returns:
        1 for equal partitions, 0 on average for independent ones.
    """
    rows, columns = (np.unique(each.cpu().numpy(), return_inverse=True)[1] for each in (labels, classes))
    if not rows.any() or not columns.any():  # a partition of one part carries no information
        return float(not rows.any() and not columns.any())
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)
    sizes = table.sum(1), table.sum(0)
    present = table[table > 0] / len(rows)
    entropies = [_entropy(size / len(rows)) for size in sizes]
    information = sum(entropies) - _entropy(present)
    expected = _expected_information(*sizes)
    above, most = (_not_zero(each - expected) for each in (information, sum(entropies) / 2))
    return above / most


def _not_zero(x: float) -> float:
    """Return a number that is at least as large as rounding: a mean that is the maximum makes both differences 0."""
    return math.copysign(max(abs(x), float(np.finfo(np.float64).eps)), x)


def _entropy(shares: np.ndarray[Any, Any]) -> float:
    return -float((shares * np.log(shares)).sum())


def _expected_information(rows: np.ndarray[Any, Any], columns: np.ndarray[Any, Any]) -> float:
    """Return the mean mutual information of two random partitions with parts of these sizes (Vinh et al., equation 24).

    The sum over the number n that two parts share, of n / N * log(N n / (a b)) times its hypergeometric probability.
    """
    total = round(float(rows.sum()))
    factorials = np.concatenate([[0.0], np.log(np.arange(1, total + 1)).cumsum()])  # logarithms
    (sizes, counts), (others, other_counts) = (
        np.unique(each.astype(int), return_counts=True) for each in (rows, columns)
    )
    expected = 0.0
    for a, count in zip(sizes, counts, strict=True):
        b, n = np.meshgrid(others, np.arange(1, min(a, others.max()) + 1), indexing="ij")
        is_possible = (n <= b) & (n >= a + b - total)
        b, n, weights = b[is_possible], n[is_possible], np.broadcast_to(other_counts[:, None], n.shape)[is_possible]
        probability = factorials[a] + factorials[b] + factorials[total - a] + factorials[total - b] - factorials[total]
        probability -= factorials[n] + factorials[a - n] + factorials[b - n] + factorials[total - a - b + n]
        terms = n / total * np.log(total * n / (a * b)) * np.exp(probability)
        expected += float(count * (terms * weights).sum())
    return expected


@torch.no_grad()
def component_share(labels: Tensor) -> float:
    """Return components per row: about 1/4 for an embedding that is not degenerate, 1/B for equal rows."""
    return len(labels.unique()) / len(labels)
