"""Protocol `linear`, the fast form: multinomial logistic regression by L-BFGS on standardised cached features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wcl_core.data import derived_seed
from wcl_core.evaluation.accuracy import top1
from wcl_core.evaluation.features import FeatureSet
from wcl_core.stop import check

VERSION = 1
STRENGTHS = tuple(10.0**exponent for exponent in range(-4, 5))
_HELD_OUT_SHARE = 0.1
_MAX_ITERATIONS = 200


def linear_classes(features: FeatureSet, seed: int) -> tuple[Tensor, float]:
    """Train a linear classifier on all train labels, and predict the classes of the test split.

    The inverse regularisation C is chosen from 10^-4 .. 10^4 on a held-out tenth of the train split, stratified by
    class.  The classifier is then fitted again on the whole train split, and the test split is read once.

    Returns:
        ((M,) int64 predicted classes, chosen C).
    """
    labels = features.train_labels
    mean, deviation = standard(features.train)
    train, test = (features.train - mean) / deviation, (features.test - mean) / deviation
    strength = chosen_strength(train, labels, seed)
    return classes(test, fit(train, labels, strength)), strength


def chosen_strength(train: Tensor, labels: Tensor, seed: int) -> float:
    """Return the C of the highest accuracy on a held-out tenth; 1 if no class has two images.

    Args:
        train: (N, D) float32, standardised.
        labels: (N,) int64.
    """
    held_out = _stratified(labels, seed)
    if not held_out.any():
        return 1.0
    best, weights = (-1.0, STRENGTHS[0]), None
    for strength in STRENGTHS:  # from the smoothest one; each fit starts from the solution of the one before
        weights = fit(train[~held_out], labels[~held_out], strength, weights)
        accuracy = top1(classes(train[held_out], weights), labels[held_out])
        best = max(best, (accuracy, strength), key=lambda pair: pair[0])
    return best[1]


def fit(x: Tensor, labels: Tensor, strength: float, start: Tensor | None = None) -> Tensor:
    """Minimise mean cross-entropy + |W|^2 / (2 C N); the bias has no penalty.

    Args:
        x: (N, D) float32.
        labels: (N,) int64 in 0..C-1.
        strength: C.
        start: the weights to start from; zeros by default.

    Returns:
        (D + 1, classes) float32, the last row the bias.
    """
    if start is None:
        start = torch.zeros(x.shape[1] + 1, int(labels.max()) + 1)
    # (classes, D): the gradient of (D, classes) is a product that takes up to ten times as long on a CPU.
    weight, bias = start[:-1].T.clone(memory_format=torch.contiguous_format), start[-1].clone()
    optimizer = torch.optim.LBFGS(
        [weight.requires_grad_(), bias.requires_grad_()],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        check()
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), labels) + weight.square().sum() / (2 * strength * len(x))
        loss.backward()
        return loss

    optimizer.step(closure)
    return torch.cat((weight.detach().T, bias.detach()[None]))


def logits(x: Tensor, weights: Tensor) -> Tensor:
    """Return the logits of weights of `fit` for (N, D) float32 features: (N, classes)."""
    return torch.addmm(weights[-1], x, weights[:-1])


def classes(x: Tensor, weights: Tensor) -> Tensor:
    """Return the classes that weights of `fit` predict for (N, D) float32 features: (N,) int64."""
    return logits(x, weights).argmax(dim=1)


def standard(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each feature; the deviation of a constant feature is 1."""
    deviation = x.std(dim=0)
    return x.mean(dim=0), torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))


def _stratified(labels: Tensor, seed: int) -> Tensor:
    """Return a mask of a random tenth of each class, at least one image if the class has two: (N,) bool."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "linear", "held out"))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        count = max(1, round(_HELD_OUT_SHARE * len(members))) if len(members) > 1 else 0
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return chosen
