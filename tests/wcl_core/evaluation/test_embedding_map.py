"""The map: the same layout everywhere, true neighbours, pictures in the order of its lists."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from tests.wcl_core import small
from wcl_core import checkpoint
from wcl_core.config import EvaluateSpec, parse_spec
from wcl_core.data import ImageData
from wcl_core.distributed import SINGLE, device_of
from wcl_core.evaluation.embedding_map import chosen, layout, nearest, principal
from wcl_core.evaluation.features import FeatureSet
from wcl_core.evaluation.knn import ProtocolError
from wcl_core.evaluation.run import evaluate
from wcl_core.images.augment import normalised
from wcl_core.methods.heads import normalise
from wcl_core.methods.weak_labels import weak_labels
from wcl_core.reporter import MemoryReporter, NullReporter
from wcl_core.training.pretrain import pretrain

pytestmark = pytest.mark.process

torch.set_num_threads(1)


def spec_of(**changes: Any) -> EvaluateSpec:
    sent = {"data": {"name": "digits", "image_size": 8}, "features": {"kind": "pixels"}, "protocols": ["map"]}
    parsed = parse_spec("evaluate", sent | changes)
    assert isinstance(parsed, EvaluateSpec)
    return parsed


def map_and_picture(
    folder: Path, data: ImageData, path: Path | None = None, **changes: Any
) -> tuple[dict[str, Any], np.ndarray]:
    """Return the map's facts and its picture."""
    reporter = MemoryReporter()
    assert evaluate(spec_of(**changes), reporter, data=data, checkpoint_path=path, output_dir=folder) == "succeeded"
    kept = {record["name"]: (folder / record["path"]).read_bytes() for record in reporter.of("artifact")}
    assert set(kept) == {"map.json", "map.png"}
    return json.loads(kept["map.json"]), np.asarray(Image.open(io.BytesIO(kept["map.png"])))


def clusters() -> FeatureSet:
    """Return features around four directions, with a little noise."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(4).repeat_interleave(25)
    rows = torch.eye(4, 12)[labels] + 0.1 * torch.randn(100, 12, generator=generator)
    return FeatureSet(rows, labels, rows, labels)


def test_principal_components_are_those_of_scikit_learn() -> None:
    x = clusters().train.double()
    scores, shares = principal(x, 5)

    reference = PCA(5, svd_solver="full").fit(x.numpy())
    expected = torch.from_numpy(reference.transform(x.numpy()))
    torch.testing.assert_close(scores.abs(), expected.abs())
    torch.testing.assert_close(shares, torch.from_numpy(reference.explained_variance_ratio_))
    assert (scores.gather(0, scores.abs().argmax(0, keepdim=True)) > 0).all()
    torch.testing.assert_close(principal(-x, 5)[0].abs(), scores.abs())


def test_neighbours_are_the_nearest_others_by_cosine() -> None:
    x = normalise(clusters().train.double())
    places, cosines = nearest(x, 10)

    reference = (x @ x.T).numpy()
    for row in range(len(x)):
        others = sorted((place for place in range(len(x)) if place != row), key=lambda p: -reference[row, p])
        assert places[row].tolist() == others[:10]
        assert cosines[row].tolist() == pytest.approx(reference[row, others[:10]])
    equal = normalise(torch.ones(4, 3).double())
    assert nearest(equal, 10)[0].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_both_layouts_keep_groups_together_and_are_the_same_again() -> None:
    features = clusters()
    result = layout(features.train, 30, 3)

    assert layout(features.train, 30, 3) == result
    assert result["perplexity"] == 30
    for name in ("pca", "tsne"):
        points = torch.tensor(result[name])
        assert points.abs().max() == 1
        near = torch.cdist(points, points).fill_diagonal_(torch.inf).argmin(dim=1)
        assert (features.train_labels[near] == features.train_labels).float().mean() > 0.95
    assert sum(result["pca_shares"]) > 0.5


@pytest.mark.parametrize("features", [torch.ones(5, 4), torch.eye(3, 1), torch.eye(40)])
def test_degenerate_features_have_a_map(features: torch.Tensor) -> None:
    result = layout(features, 30, 0)

    assert np.isfinite(result["pca"]).all()
    assert np.isfinite(result["tsne"]).all()
    assert len(result["pca"]) == len(result["tsne"]) == len(result["neighbours"]) == len(features)
    assert result["perplexity"] <= len(features) / 3


def test_a_large_split_is_drawn_from_at_random() -> None:
    first, again, other = chosen(5000, 2000, 1), chosen(5000, 2000, 1), chosen(5000, 2000, 2)

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.tolist() == sorted(set(first.tolist()))
    assert len(first) == 2000
    assert 2000 < first.float().mean() < 3000
    assert chosen(7, 2000, 0).tolist() == list(range(7))


def test_a_checkpoint_is_mapped_with_its_weak_labels(tmp_path: Path) -> None:
    data = small.few_digits()
    run = small.spec(epochs=1, warmup_epochs=0, weak_augmentation_epochs=0, knn_every_epochs=0)
    pretrain(run, NullReporter(), dataset=data, output_dir=tmp_path)
    path = max((tmp_path / "checkpoints").iterdir())
    features = {"kind": "checkpoint", "checkpoint_id": "00000000-0000-7000-8000-000000000001"}
    map_spec = {"split": "train", "images": 50}
    facts, picture = map_and_picture(tmp_path, data, path, features=features, seed=4, map=map_spec)

    index = facts["indices"]
    assert index == chosen(270, 50, 4).tolist()
    assert facts["labels"] == data.train.labels[index].tolist()
    assert (facts["split"], facts["split_images"], facts["dataset_digest"]) == ("train", 270, data.digest)
    saved = checkpoint.read(path)
    model = small.model(saved.spec)
    model.load_state_dict(saved.part("model/"))
    model.eval().to(device := device_of(SINGLE))
    with torch.no_grad():
        rows = model.backbone(normalised(data.train.images[index].to(device)))
        labels = weak_labels(model.heads(rows)[model.labels_head or ""]).cpu()
        rows = rows.cpu()
    assert (torch.tensor(facts["components"])[:, None] == torch.tensor(facts["components"])).equal(
        labels[:, None] == labels
    )
    assert facts["neighbours"] == nearest(normalise(rows.double()), 10)[0].tolist()
    tile, columns = facts["tile"], facts["columns"]
    for place in (0, 13, 49):
        top, left = tile * (place // columns), tile * (place % columns)
        shown = picture[top : top + tile, left : left + tile]
        assert (shown == data.train.images[index[place]].permute(1, 2, 0).numpy()).all()


def test_features_without_a_weak_head_have_no_components(tmp_path: Path) -> None:
    facts, _ = map_and_picture(tmp_path, small.few_digits(), map={"images": 30})

    assert facts["components"] is None
    assert len(facts["labels"]) == 30


def test_without_scikit_learn_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)

    with pytest.raises(ProtocolError, match="map needs scikit-learn"):
        map_and_picture(tmp_path, small.few_digits(), map={"images": 30})
    with pytest.raises(ProtocolError, match="needs 3 images"):
        layout(torch.ones(2, 2), 30, 0)
