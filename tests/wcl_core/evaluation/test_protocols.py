"""The wide kNN, the published linear protocol, few labels by a classifier, fine-tuning, retrieval and transfer."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score
from torch import Tensor, nn

from tests.wcl_core import small
from wcl_core import checkpoint
from wcl_core.config import (
    PROTOCOLS,
    BackboneConfig,
    EvaluateSpec,
    LinearSgdConfig,
    Protocol,
    SemiSupervisedConfig,
    parse_spec,
    resolve_spec,
)
from wcl_core.data import ImageData, Split
from wcl_core.distributed import SINGLE, device_of
from wcl_core.evaluation import (
    accuracy,
    classifier,
    few_labels,
    knn,
    linear,
    linear_sgd,
    results,
    retrieval,
    semi_supervised,
)
from wcl_core.evaluation.classifier import Recipe
from wcl_core.evaluation.embedding import write_embeddings
from wcl_core.evaluation.features import FeatureSet, network_features, pixel_features
from wcl_core.evaluation.knn import ProtocolError
from wcl_core.evaluation.progress import Progress
from wcl_core.evaluation.run import evaluate, untrained_backbone
from wcl_core.reporter import MemoryReporter
from wcl_core.stop import Interrupted, interruptible

torch.set_num_threads(1)
CPU = torch.device("cpu")


def evaluate_spec(**changes: Any) -> EvaluateSpec:
    sent = {"data": {"name": "digits", "image_size": 8}, "features": {"kind": "pixels"}, "draws": 5, "knn_k": 5}
    parsed = parse_spec("evaluate", sent | changes)
    assert isinstance(parsed, EvaluateSpec)
    return parsed


def progress() -> Progress:
    return Progress(MemoryReporter(), ["features", "kNN"])


def measured(data: ImageData, **changes: Any) -> list[dict[str, Any]]:
    reporter = MemoryReporter()
    assert evaluate(evaluate_spec(**changes), reporter, data=data) == "succeeded"
    return reporter.of("evaluation")


def test_mean_per_class_is_scikit_learns_balanced_accuracy() -> None:
    labels = torch.tensor([0] * 50 + [2] * 5 + [3])  # no image is of class 1, but some are classified as it
    predicted = torch.tensor([0] * 40 + [1] * 10 + [2, 2, 0, 0, 0] + [3])
    assert accuracy.top1(predicted, labels) == pytest.approx(43 / 56)
    assert accuracy.mean_per_class(predicted, labels) == pytest.approx((0.8 + 0.4 + 1) / 3)
    some = labels == predicted
    some[:30] = True
    assert accuracy.mean_per_class(predicted[some], labels[some]) == pytest.approx(
        balanced_accuracy_score(labels[some], predicted[some])
    )


def test_the_wide_knn_has_200_neighbours_at_a_tenth_and_refuses_small_classes() -> None:
    data = small.feature_set(spread=1.5, per_class=400)
    subject = results.Subject(nn.Identity(), data, CPU)
    records = list(results.results("knn_wide", evaluate_spec(), small.few_digits(), subject, progress()))
    assert records[0]["params"] == {"k": 200, "temperature": 0.1}
    assert records[0]["value"] == small.knn_top1(data, 200, 0.1)
    with pytest.raises(ProtocolError, match="protocols: k of knn_wide = 200"):
        evaluate(evaluate_spec(protocols=["knn_wide"]), MemoryReporter(), data=small.digits())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, facts in PROTOCOLS.items() if facts.measures])
def test_a_protocol_reports_the_measures_of_the_table_in_its_order(name: Protocol) -> None:
    data, sgd = small.few_digits(), {"epochs": 1, "batch_size": 64}
    spec = evaluate_spec(linear_sgd=sgd, semi_supervised=sgd | {"shares": [0.1, 0.2], "splits": 2})
    backbone = untrained_backbone(BackboneConfig(width=4), 0, 8)
    features = network_features(backbone, data, CPU) if name != "knn_wide" else small.feature_set(per_class=400)
    records = list(results.results(name, spec, data, results.Subject(backbone, features, CPU), progress()))

    assert list(dict.fromkeys(each["metric"] for each in records)) == [each.name for each in PROTOCOLS[name].measures]
    main = [each for each in records if PROTOCOLS[name].is_main(each["metric"])]
    assert len(main) == PROTOCOLS[name].num_values(spec)


# --- the published linear protocol ---------------------------------------------------------------------------------


def by_hand(data: ImageData, backbone: nn.Module, config: LinearSgdConfig, seed: int) -> Iterator[float]:
    """Yield the test accuracy after each epoch, with momentum, rate and cosine written out."""
    features = network_features(backbone, data, CPU)
    head = classifier.new_head(features.train.shape[1], 10, seed)
    velocity = [torch.zeros_like(p) for p in head.parameters()]
    recipe = Recipe(1, config.batch_size, config.crop_scale_min, config.flip_probability, 8, seed)
    n, b = len(data.train), config.batch_size
    steps = math.ceil(n / b)
    order_seed = classifier.derived_seed(seed, "classifier")
    for step in range(total := steps * config.epochs):
        epoch, place = divmod(step, steps)
        rows = classifier.epoch_order(n, order_seed, epoch)[place * b : (place + 1) * b]
        views = classifier.random_view(
            data.train.images[rows], recipe.augmentation, 8, seed=order_seed, epoch=epoch, step=step, view=0
        )
        with torch.no_grad():
            h = backbone.eval()(views)
        loss = nn.functional.cross_entropy(head(h), data.train.labels[rows])
        gradients = torch.autograd.grad(loss, list(head.parameters()))
        rate = 0.2 * b / 256 * 0.5 * (1 + math.cos(math.pi * step / total))
        with torch.no_grad():
            for v, g, p in zip(velocity, gradients, head.parameters(), strict=True):
                v.mul_(0.9).add_(g)
                p -= rate * (g + 0.9 * v)
            if place == steps - 1:
                yield float((head(features.test).argmax(1) == data.test.labels).double().mean())


def test_linear_sgd_is_nesterov_with_a_cosine_and_reports_the_last_epoch() -> None:
    data = small.few_digits()
    backbone = untrained_backbone(small.spec().backbone, seed=0)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    config = LinearSgdConfig(epochs=6, batch_size=64, flip_probability=0)
    expected = list(by_hand(data, backbone, config, seed=2))
    trained = linear_sgd.linear_sgd(backbone, data, config, 8, 2, CPU, progress())
    assert accuracy.top1(trained.predicted, data.test.labels) == pytest.approx(expected[-1])
    assert trained.best_top1 == pytest.approx(max(expected))
    assert trained.best_epoch == expected.index(max(expected)) + 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())  # frozen, also BN
    assert len(set(expected)) > 3


def test_the_best_epoch_is_labelled_as_selected_on_test(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = small.few_digits().test.labels
    outcome = linear_sgd.LinearSgd(32, (labels + 1) % 10, 0.75, 3)
    monkeypatch.setattr(linear_sgd, "linear_sgd", lambda *_: outcome)
    spec = {"epochs": 4, "batch_size": 32}
    records = measured(small.few_digits(), protocols=["linear_sgd"], linear_sgd=spec)
    assert [(r["metric"], r["value"], r["params"]["epoch"]) for r in records] == [
        ("top1", 0.0, "last"),
        ("mean_per_class", 0.0, "last"),
        ("top1_selected_on_test", 0.75, "best, selected on test"),
    ]
    assert records[2]["details"] == {"best_epoch": 3}
    assert records[0]["params"] == {
        "form": "sgd",
        "epoch": "last",
        "epochs": 4,
        "batch_size": 32,
        "crop_scale_min": 0.08,
        "flip_probability": 0.5,
    }


def test_the_published_recipe_is_the_default_and_a_small_split_is_one_batch() -> None:
    config = LinearSgdConfig()
    assert (config.epochs, config.batch_size, config.crop_scale_min, config.flip_probability) == (80, 4096, 0.08, 0.5)
    head = classifier.new_head(500, 100, 0)
    assert float(head.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert not head.bias.any()
    whole, same = (
        measured(small.few_digits(), protocols=["linear_sgd"], linear_sgd={"epochs": 2, **batch})
        for batch in ({}, {"batch_size": 270})
    )
    assert [result["params"]["batch_size"] for result in whole] == [270] * 3
    assert [(r["value"], r["params"]) for r in whole] == [(r["value"], r["params"]) for r in same]


def test_a_request_stops_a_long_protocol_which_reports_nothing() -> None:
    requests = iter([None] * 10)
    reporter = MemoryReporter(lambda _: next(requests, "cancel"))  # type: ignore[arg-type, return-value]
    spec = evaluate_spec(protocols=["linear_sgd"], linear_sgd={"epochs": 1000, "batch_size": 32})
    assert evaluate(spec, reporter, data=small.few_digits()) == "cancelled"
    assert reporter.of("evaluation") == []


LOOPS: dict[str, Callable[[FeatureSet], object]] = {
    "knn": lambda features: knn.knn_correct(features, 1, 0.1),
    "linear": lambda features: linear.linear_classes(features, 0),
    "few_labels": lambda features: few_labels.few_labels(features, 1, 2, 0),
    "retrieval": lambda features: retrieval.retrieval(features, 1),
    "features": lambda _: network_features(torch.nn.Flatten(), small.few_digits(), torch.device("cpu")),
    "progress": lambda _: Progress(MemoryReporter(), ["features", "kNN"]).tick(0.5),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_request_ends_each_long_loop(loop: str) -> None:
    features = pixel_features(small.few_digits())
    LOOPS[loop](features)  # without a request, also where one would be heard
    with interruptible(lambda: "drain"), pytest.raises(Interrupted):
        LOOPS[loop](features)


def test_a_request_is_read_between_the_blocks_of_knn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among 1.3 million train images a block takes seconds, and all of them take hours."""
    features, votes, rows = pixel_features(small.few_digits()), knn._votes, []
    monkeypatch.setattr(knn, "_MOST_VALUES", 0)  # blocks as small as they may be
    monkeypatch.setattr(knn, "_votes", lambda queries, *rest: rows.append(len(queries)) or votes(queries, *rest))  # type: ignore[func-returns-value]
    requests = iter([None, None])
    with interruptible(lambda: next(requests, "cancel")), pytest.raises(Interrupted):
        knn.knn_correct(features, 1, 0.1)
    assert rows == [16, 16, 16]
    assert len(features.test) > sum(rows)


# --- few labels ----------------------------------------------------------------------------------------------------


def test_few_labels_by_a_classifier_is_scikit_learns_on_the_same_draws() -> None:
    data = small.feature_set(spread=1.5)
    mean, deviation = data.train.mean(0), data.train.std(0)
    train, test = ((x - mean) / deviation for x in (data.train, data.test))
    scores = []
    for draw in range(4):
        rows = few_labels.draw_labelled(data.train_labels, 3, seed=1, draw=draw).flatten()
        reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=2000)
        reference.fit(train[rows].double().numpy(), data.train_labels[rows].numpy())
        scores.append(reference.score(test.double().numpy(), data.test_labels.numpy()))
    result = few_labels.few_labels(data, 3, draws=4, seed=1, classifier="linear")
    assert result.mean == pytest.approx(np.mean(scores), abs=1e-9)
    assert result.stderr == pytest.approx(np.std(scores, ddof=1) / 2, abs=1e-9)
    assert result.mean != few_labels.few_labels(data, 3, draws=4, seed=1).mean


def test_both_classifiers_report_their_results() -> None:
    classifiers = ["nearest_class_mean", "linear"]
    records = measured(small.few_digits(), protocols=["few_labels"], few_labels_classifiers=classifiers)
    named = [(r["params"]["classifier"], r["params"]["labels_per_class"], r["params"].get("C")) for r in records]
    assert named == [(classifiers[0], 1, None), (classifiers[0], 5, None), ("linear", 1, 1.0), ("linear", 5, 1.0)]
    assert all(r["stderr"] > 0 for r in records)


# --- semi-supervised -----------------------------------------------------------------------------------------------


def test_a_labelled_split_is_balanced_and_a_function_of_seed_and_number() -> None:
    labels = small.digits().train.labels
    split = semi_supervised.labelled_split(labels, 0.1, seed=0, number=0)
    assert labels[split].bincount().tolist() == [14] * 10  # 1,433 images in all
    assert torch.equal(split, split.unique())
    assert torch.equal(split, semi_supervised.labelled_split(labels, 0.1, seed=0, number=0))
    others = [semi_supervised.labelled_split(labels, 0.1, seed, number) for seed, number in ((0, 1), (1, 0))]
    assert not any(torch.equal(split, other) for other in others)
    assert labels[semi_supervised.labelled_split(labels, 0.0001, 0, 0)].bincount().tolist() == [1] * 10
    with pytest.raises(ProtocolError, match=r"semi_supervised.shares: 1 of the labels"):
        semi_supervised.labelled_split(labels, 1.0, 0, 0)  # the classes are not equally large


def quick(**changes: Any) -> dict[str, Any]:
    return {"shares": [0.1], "splits": 3, "epochs": 2, "batch_size": 32, "flip_probability": 0} | changes


def test_fine_tuning_moves_both_parts_by_their_own_rates_and_leaves_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, original = small.few_digits(), semi_supervised.train
    backbone = untrained_backbone(small.spec().backbone, seed=0)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    networks: list[nn.Sequential] = []
    met: list[Tensor] = []

    def watch(network: Any, groups: Any, split: Split, index: Tensor, recipe: Recipe) -> Any:
        networks.append(network)
        met.append(index)
        assert [rate for _, rate in groups] == [0.01, 0.5]
        assert set(map(id, network.parameters())) == {id(p) for group, _ in groups for p in group}
        return original(network, groups, split, index, recipe)

    monkeypatch.setattr(semi_supervised, "train", watch)
    config = SemiSupervisedConfig(**quick(splits=2, head_learning_rate=0.5))
    splits = [semi_supervised.labelled_split(data.train.labels, 0.1, 0, number) for number in range(config.splits)]
    result = semi_supervised.semi_supervised(backbone, data, config, splits, 8, 0, CPU, progress())
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    for network in networks:
        tuned = network[0].state_dict()
        for name, tensor in tuned.items():
            is_statistic = "running" in name or "tracked" in name
            assert torch.equal(tensor, before[name]) == is_statistic, name
    digests = [hashlib.sha256(np.asarray(index, dtype="<i8").tobytes()).hexdigest() for index in met]
    assert result.split_digests == tuple(digests)
    assert len(set(digests)) == 2


@pytest.mark.slow
def test_semi_supervised_reports_mean_error_and_digests_of_its_splits() -> None:
    kind = {"kind": "untrained", "backbone": {"name": "tiny", "width": 4}}
    settings = quick(shares=[0.01, 0.1], head_learning_rate=0.5, epochs=8)
    data = small.few_digits()
    measurements = measured(data, protocols=["semi_supervised"], features=kind, semi_supervised=settings)
    assert [(r["params"]["share"], r["params"]["labels_per_class"]) for r in measurements] == [(0.01, 1), (0.1, 3)]
    for result in measurements:
        values = result["details"]["accuracies"]
        assert len(values) == len(set(result["details"]["splits"])) == 3
        assert result["value"] == pytest.approx(np.mean(values))
        assert result["stderr"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(3))
        assert result["params"].keys() >= {"splits", "epochs", "backbone_learning_rate", "head_learning_rate"}
    assert len({r["split_digest"] for r in measurements} | {data.test.digest}) == 3
    assert measurements[1]["value"] > 0.2
    again = measured(data, protocols=["semi_supervised"], features=kind, semi_supervised=settings)
    assert again == measurements
    other = measured(data, protocols=["semi_supervised"], features=kind, semi_supervised=settings, seed=1)
    assert other[0]["split_digest"] != measurements[0]["split_digest"]


def test_pixels_cannot_be_fine_tuned() -> None:
    with pytest.raises(ValidationError, match="features\n.*semi_supervised fine-tunes a network"):
        evaluate_spec(protocols=["semi_supervised"])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"linear_sgd": {"epochs": 0}}, "linear_sgd.epochs"),
        ({"semi_supervised": {"splits": 1}}, "semi_supervised.splits"),
        ({"semi_supervised": {"shares": [0.1, 0.1]}}, "semi_supervised.shares"),
        ({"semi_supervised": {"shares": [0.1, 1.5]}}, "semi_supervised.shares.1"),
        ({"few_labels_classifiers": ["linear", "linear"]}, "few_labels_classifiers"),
        ({"retrieval_examples": 101}, "retrieval_examples"),
    ],
)
def test_wrong_settings_name_their_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        evaluate_spec(**changes)
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [field]


# --- retrieval -----------------------------------------------------------------------------------------------------


def test_retrieval_is_scikit_learns_average_precision_and_nearest_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_ROWS", 7)
    data = small.feature_set(spread=1.5, per_class=20)
    retrieved = retrieval.retrieval(data, num_examples=3)
    train, test = (nn.functional.normalize(x.double(), dim=1) for x in (data.train, data.test))
    cosine = (test @ train.T).numpy()
    relevant = (data.test_labels[:, None] == data.train_labels).numpy()
    precisions = np.array([average_precision_score(r, c) for r, c in zip(relevant, cosine, strict=True)])
    assert retrieved.mean_average_precision == pytest.approx(precisions.mean())
    for label, value in enumerate(retrieved.by_class):
        assert value == pytest.approx(precisions[data.test_labels.numpy() == label].mean())
    best = np.argsort(-cosine, axis=1)
    assert retrieved.recall_at_1 == pytest.approx(np.mean([r[b[0]] for r, b in zip(relevant, best, strict=True)]))
    assert retrieved.recall_at_1 == small.knn_top1(data, 1, 0.07)
    assert retrieved.recall_at_5 == pytest.approx(
        np.mean([r[b[:5]].any() for r, b in zip(relevant, best, strict=True)])
    )
    assert retrieved.recall_at_1 < retrieved.recall_at_5
    assert [example["index"] for example in retrieved.examples] == [0, 13, 26]
    for example in retrieved.examples:
        assert [entry["index"] for entry in example["neighbours"]] == best[example["index"], :5].tolist()
        assert example["neighbours"][0]["cosine"] == pytest.approx(cosine[example["index"]].max(), abs=1e-4)


def test_retrieval_lists_neighbours_beside_its_numbers() -> None:
    records = measured(small.few_digits(), protocols=["retrieval"], retrieval_examples=2)
    assert [r["metric"] for r in records] == ["recall_at_1", "recall_at_5", "mean_average_precision"]
    assert len(records[0]["details"]["examples"]) == 2
    assert len(records[2]["details"]["by_class"]) == 10
    details = measured(small.few_digits(), protocols=["retrieval"], retrieval_examples=0)[0]["details"]
    assert (set(details), details["examples"]) == ({"examples", "per_image"}, [])


# --- transfer ------------------------------------------------------------------------------------------------------


def another_dataset() -> ImageData:
    """Return images of twelve pixels in three unequal classes: bright, dark and striped."""
    generator = torch.Generator().manual_seed(0)
    splits = []
    for count in (40, 15):
        labels = torch.tensor([0] * count + [1] * count + [2] * (count // 2))
        images = torch.rand(len(labels), 3, 12, 12, generator=generator) * 120
        images[labels == 0] += 130
        images[labels == 2, :, ::2] += 130
        splits.append(Split(images.to(torch.uint8), labels, f"{count}" * 32))
    return ImageData("other", splits[0], splits[1], ("bright", "dark", "striped"), "e" * 64)


@pytest.mark.slow
def test_a_checkpoint_transfers_to_another_dataset_size_and_number_of_classes(tmp_path: Path) -> None:
    spec = small.spec(seed=5)
    tensors = {f"model/{name}": tensor for name, tensor in small.model(spec).state_dict().items()}
    facts = {"spec": resolve_spec(spec), "step": 1, "epoch": 0}
    path = checkpoint.write(tmp_path / "one.safetensors", tensors, facts).path
    data, reporter = another_dataset(), MemoryReporter()
    transfer = evaluate_spec(
        data={"name": "other", "image_size": 12},
        features={"kind": "checkpoint", "checkpoint_id": "0190b5a0-0000-7000-8000-000000000000"},
        protocols=["knn", "linear", "linear_sgd", "few_labels", "semi_supervised", "retrieval"],
        linear_sgd={"epochs": 5, "batch_size": 20},
        semi_supervised=quick(splits=2),
    )
    assert evaluate(transfer, reporter, data=data, checkpoint_path=path) == "succeeded"
    records = {(r["protocol"], r["metric"]): r for r in reporter.of("evaluation")}
    assert records["linear", "top1"]["value"] > 0.8
    assert records["linear", "mean_per_class"]["value"] > 0.8
    assert {r["dataset_digest"] for r in records.values()} == {"e" * 64}
    assert {r["n"] for r in records.values()} == {37}
    features = network_features(untrained_backbone(spec.backbone, 5), data, CPU)
    predicted, _ = linear.linear_classes(features, 0)
    for metric, measure in (("top1", accuracy.top1), ("mean_per_class", accuracy.mean_per_class)):
        assert records["linear", metric]["value"] == pytest.approx(measure(predicted, data.test.labels))


def test_pixels_go_through_the_published_protocol_too() -> None:
    data = small.few_digits()
    records = measured(
        data, protocols=["linear_sgd"], linear_sgd={"epochs": 3, "batch_size": 64, "flip_probability": 0}
    )
    assert records[0]["value"] > 0.3


# --- embeddings ----------------------------------------------------------------------------------------------------


def test_embeddings_are_all_features_of_both_splits_in_one_file(tmp_path: Path) -> None:
    data, reporter = small.few_digits(), MemoryReporter()
    kind = {"kind": "untrained", "backbone": {"name": "tiny", "width": 4}}
    spec = evaluate_spec(protocols=["embed", "knn"], features=kind, seed=3)
    assert evaluate(spec, reporter, data=data, output_dir=tmp_path) == "succeeded"

    record = reporter.of("checkpoint")[0]
    path = tmp_path / record["path"]
    content = path.read_bytes()
    assert (record["kind"], record["size"]) == ("embeddings", len(content))
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert [r["protocol"] for r in reporter.of("evaluation")] == ["knn"]
    tensors = load_file(path)
    assert spec.features.kind == "untrained"
    device = device_of(SINGLE)
    features = network_features(untrained_backbone(spec.features.backbone, 3).to(device), data, device)
    for split, values, labels in (
        ("train", features.train, data.train.labels),
        ("test", features.test, data.test.labels),
    ):
        assert tensors[f"{split}/features"].dtype == torch.float16
        torch.testing.assert_close(tensors[f"{split}/features"].float(), values, rtol=1e-3, atol=1e-4)
        assert torch.equal(tensors[f"{split}/labels"], labels)
        assert tensors[f"{split}/index"].tolist() == list(range(len(labels)))
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["wcl"])
    assert (facts["dataset_digest"], facts["split_digests"]["test"]) == (data.digest, data.test.digest)
    assert facts["features"] == spec.features.model_dump()
    with pytest.raises(ValueError, match="needs a folder"):
        evaluate(spec, MemoryReporter(), data=data)


def test_features_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    huge = FeatureSet(torch.full((3, 2), 1e5), torch.zeros(3).long(), torch.zeros(3, 2), torch.zeros(3).long())
    with pytest.raises(ProtocolError, match="embed stores float16.*train"):
        write_embeddings(tmp_path / "x.safetensors", huge, evaluate_spec(protocols=["embed"]), small.few_digits())
    assert list(tmp_path.iterdir()) == []
