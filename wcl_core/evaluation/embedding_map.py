"""Protocol `map`: images of one split in two dimensions by their features, with their nearest neighbours.

Artifacts `map.json` (`protocol.MapFacts`) and `map.png`, the images in the same order.  PCA and t-SNE (van der
Maaten & Hinton, JMLR 2008) both get L2-normalised features, so near means near by cosine; t-SNE gets their first 50
principal components.  t-SNE keeps neighbourhoods: distances, sizes and gaps between clusters have no meaning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wcl_core import artifacts, checkpoint
from wcl_core.config import CheckpointFeatures, EvaluateSpec
from wcl_core.data import ImageData, derived_seed
from wcl_core.data.layout import shown
from wcl_core.evaluation.features import FeatureSet
from wcl_core.evaluation.knn import ProtocolError
from wcl_core.methods import build_method
from wcl_core.methods.heads import normalise
from wcl_core.methods.weak_labels import weak_labels
from wcl_core.networks.model import Model
from wcl_core.protocol import MAP_FACTS, MAP_PICTURE, MapFacts
from wcl_core.reporter import Reporter
from wcl_core.thumbnails import sheet

VERSION = 1
NEIGHBOURS = 10
_TSNE_DIMENSIONS = 50
_MAX_TILE = 32


def keep_map(
    reporter: Reporter,
    output_dir: Path,
    spec: EvaluateSpec,
    data: ImageData,
    features: FeatureSet,
    checkpoint_path: Path | None,
) -> None:
    """Write the map of the images that `spec.map` selects, as two artifacts; without labels, of the unlabelled split.

    Raises:
        ProtocolError: scikit-learn is not installed, a feature is not finite, or the split has fewer than 3 images.
    """
    which = spec.map.split if len(data.train) else "unlabelled"
    split = getattr(data, which)
    index = chosen(len(split), spec.map.images, spec.seed)
    rows = getattr(features, which)[index]
    if not bool(torch.isfinite(rows).all()):
        problem = f"a feature of the {which} split is NaN or infinite"
        raise ProtocolError(f"protocols: map needs finite features, but {problem}; remove map")
    components = None
    if isinstance(spec.features, CheckpointFeatures) and checkpoint_path is not None:
        components = weak_components(checkpoint_path, rows)
    picture = sheet(split.plain(index), max_tile=_MAX_TILE)
    facts = MapFacts(
        version=VERSION,
        dataset=data.name,
        dataset_digest=data.digest,
        split=which,
        split_images=len(split),
        split_digest=split.digest,
        class_names=list(data.classes),
        tile=picture.tile,
        columns=picture.columns,
        indices=index.tolist(),
        labels=[label if label >= 0 else None for label in split.labels[index].tolist()],
        components=components,
        files=[shown(split.files[place]) for place in index.tolist()] if split.files else None,
        **layout(rows, spec.map.perplexity, spec.seed),
    )
    artifacts.keep(reporter, output_dir, MAP_PICTURE, picture.png)
    artifacts.keep(reporter, output_dir, MAP_FACTS, json.dumps(facts.model_dump()).encode())


def chosen(count: int, limit: int, seed: int) -> Tensor:
    """Return indices into the split, ascending, drawn at random if it has more than `limit`: (min(count, limit),)."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "map"))
    return torch.randperm(count, generator=generator)[:limit].sort().values


def layout(features: Tensor, perplexity: float, seed: int) -> dict[str, Any]:
    """Return the positions of the images, and the nearest neighbours of each.

    Args:
        features: (N, D) finite floats, N >= 3.
        perplexity: perplexity of t-SNE; reduced to a third of the images if larger.
        seed: seed of t-SNE.

    Returns:
        `pca` and `tsne`, [x, y] of each image within -1 and 1; `pca_shares`, the share of the variance of each axis;
        `perplexity`, as used; `neighbours`, indices into these lists, nearest first, and their `cosines`.
    """
    if len(features) < 3:
        raise ProtocolError(f"protocols: map needs 3 images, but the split has {len(features)}; remove map")
    x = normalise(features.double())
    scores, shares = principal(x, _TSNE_DIMENSIONS)
    used = min(perplexity, (len(x) - 1) / 3)
    places, cosines = nearest(x, NEIGHBOURS)
    return {
        "pca": _scaled(scores[:, :2]),
        "pca_shares": [round(share, 4) for share in shares[:2].tolist()],
        "tsne": _scaled(_tsne(scores, used, seed)),
        "perplexity": round(used, 2),
        "neighbours": places.tolist(),
        "cosines": [[round(value, 3) for value in row] for row in cosines.tolist()],
    }


def principal(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the scores on the first principal components, and their shares of the variance.

    The sign of a component is arbitrary; here its largest score is positive, so a map is the same on every machine.

    Args:
        x: (N, D) float64.

    Returns:
        (N, K) and (K,) float64, K = max(2, min(count, N, D)); missing components are zero.
    """
    centred = x - x.mean(dim=0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    scores, shares = (u * s)[:, :count], s.square()[:count] / s.square().sum().clamp_min(torch.finfo(s.dtype).tiny)
    largest = scores.gather(0, scores.abs().argmax(dim=0, keepdim=True))
    scores = torch.where(largest < 0, -scores, scores)
    missing = max(0, 2 - scores.shape[1])
    return torch.nn.functional.pad(scores, (0, missing)), torch.nn.functional.pad(shares, (0, missing))


def nearest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the nearest other rows by cosine, nearest first; of equal cosines, the lower index comes first.

    Args:
        x: (N, D) unit rows.

    Returns:
        (N, K) int64 indices and (N, K) cosines, K = min(count, N - 1).
    """
    cosines = x @ x.T
    cosines.fill_diagonal_(-torch.inf)
    values, places = cosines.sort(dim=1, descending=True, stable=True)
    kept = min(count, len(x) - 1)
    return places[:, :kept], values[:, :kept]


def weak_components(path: Path, features: Tensor) -> list[int] | None:
    """Return the weak labels of these images, numbered from 0; None if the checkpoint has no weak head.

    Args:
        path: a native checkpoint.
        features: (N, D) float32, pooled outputs of its backbone.
    """
    saved = checkpoint.read(path)
    model = Model(saved.spec, build_method(saved.spec))
    if model.labels_head is None:
        return None
    model.load_state_dict(saved.part("model/"))
    model.eval()
    with torch.no_grad():
        labels = weak_labels(model.heads(features)[model.labels_head])
    numbers: list[int] = labels.unique(return_inverse=True)[1].tolist()
    return numbers


def _tsne(scores: Tensor, perplexity: float, seed: int) -> Tensor:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ProtocolError("protocols: map needs scikit-learn, which is not installed here; install it") from error
    if not bool(scores.any()):
        return scores[:, :2]  # all features are equal
    positions = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(scores.float().numpy())
    return torch.from_numpy(positions).double()


def _scaled(places: Tensor) -> list[list[float]]:
    """Return positions centred and scaled to within -1 and 1, both axes by the same factor."""
    low, high = places.min(dim=0).values, places.max(dim=0).values
    half = float((high - low).max() / 2) or 1.0
    scaled = (places - (low + high) / 2) / half
    return [[round(x, 4), round(y, 4)] for x, y in scaled.tolist()]
