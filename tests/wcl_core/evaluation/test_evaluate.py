"""Protocols against independent references: scikit-learn, and loops written from the definitions."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize
from torch import nn

from tests.wcl_core import small
from wcl_core import checkpoint
from wcl_core.checkpoint import CheckpointError
from wcl_core.config import EvaluateSpec, parse_spec, resolve_spec
from wcl_core.data import ImageData, Split
from wcl_core.evaluation import features, few_labels, knn, linear
from wcl_core.evaluation import progress as evaluation_progress
from wcl_core.evaluation.accuracy import top1
from wcl_core.evaluation.features import FeatureSet
from wcl_core.evaluation.knn import ProtocolError
from wcl_core.evaluation.run import evaluate, untrained_backbone
from wcl_core.images.augment import normalised
from wcl_core.reporter import MemoryReporter

torch.set_num_threads(1)


# --- kNN -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (15, 0.1), (15, 10.0)])
def test_knn_is_scikit_learns_with_the_same_votes(k: int, temperature: float) -> None:
    data = small.feature_set(spread=1.5)
    classifier = KNeighborsClassifier(
        k, algorithm="brute", metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    classifier.fit(data.train.double().numpy(), data.train_labels.numpy())
    expected = classifier.score(data.test.double().numpy(), data.test_labels.numpy())
    assert 0.4 < expected < 0.95
    assert small.knn_top1(data, k, temperature) == pytest.approx(expected)


def test_knn_votes_at_a_temperature_where_every_weight_underflows() -> None:
    """exp((cos - 1) / T) is 0 in float32 for each neighbour here; the class of the nearest one still wins."""
    data = small.feature_set(spread=1.5)
    assert small.knn_top1(data, 5, 1e-4) == small.knn_top1(data, 1, 0.07)


def test_knn_weighs_neighbours_by_similarity() -> None:
    """One very near neighbour of class 1 against two far ones of class 0."""
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.0], [-1.0, 0.1], [-1.0, 0.2]])
    data = FeatureSet(train, torch.tensor([1, 0, 0, 1, 1, 0]), torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    wide = FeatureSet(torch.cat([train] * 2), torch.cat([data.train_labels] * 2), data.test, data.test_labels)
    assert small.knn_top1(wide, 3, 0.07) == 1.0


def test_knn_in_chunks_is_knn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small.feature_set(spread=1.5)
    whole = small.knn_top1(data, 5, 0.07)
    monkeypatch.setattr(knn, "_ROWS", 7)
    assert small.knn_top1(data, 5, 0.07) == whole


def test_knn_refuses_a_k_above_half_of_the_smallest_class() -> None:
    data = small.feature_set(per_class=30)
    small.knn_top1(data, 15, 0.07)
    with pytest.raises(ProtocolError, match="knn_k = 16.*30"):
        small.knn_top1(data, 16, 0.07)


# --- linear --------------------------------------------------------------------------------------------------------


def _linear_top1(data: FeatureSet, seed: int) -> tuple[float, float]:
    predicted, strength = linear.linear_classes(data, seed)
    return top1(predicted, data.test_labels), strength


@pytest.mark.parametrize("strength", [1e-2, 1.0, 1e2])
def test_a_fit_is_scikit_learns_logistic_regression(strength: float) -> None:
    data = small.feature_set(spread=1.5)
    weights = linear.fit(data.train, data.train_labels, strength)
    reference = LogisticRegression(C=strength, tol=1e-10, max_iter=5000)
    reference.fit(data.train.double().numpy(), data.train_labels.numpy())
    # The bias is free up to a constant over the classes.
    bias = weights[-1] - weights[-1].mean()
    expected_bias = torch.tensor(reference.intercept_ - reference.intercept_.mean())
    torch.testing.assert_close(weights[:-1].T.double(), torch.tensor(reference.coef_), rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(bias.double(), expected_bias, rtol=2e-2, atol=2e-3)


def test_linear_accuracy_is_scikit_learns_at_the_chosen_strength() -> None:
    data = small.feature_set(spread=1.5, per_class=60)
    accuracy, strength = _linear_top1(data, seed=0)
    assert strength in linear.STRENGTHS
    mean, deviation = data.train.mean(0), data.train.std(0)
    reference = LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
    reference.fit(((data.train - mean) / deviation).numpy(), data.train_labels.numpy())
    expected = reference.score(((data.test - mean) / deviation).numpy(), data.test_labels.numpy())
    assert accuracy == pytest.approx(expected, abs=0.5 / len(data.test))


def test_the_strength_is_chosen_without_the_test_split() -> None:
    data = small.feature_set(spread=1.5, per_class=60)
    chosen = set()
    for shift in range(4):
        labels = (data.test_labels + shift) % 4
        chosen.add(_linear_top1(FeatureSet(data.train, data.train_labels, data.test, labels), seed=0)[1])
    assert len(chosen) == 1


@pytest.mark.slow
def test_the_strength_is_the_smallest_of_the_best_on_the_held_out_tenth() -> None:
    """There are few noisy examples of many dimensions; a fit that includes the held-out ones would overfit them."""
    data = small.feature_set(spread=4.0, per_class=30, dim=20)
    train = ((data.train - data.train.mean(0)) / data.train.std(0)).numpy()
    labels, chosen_values = data.train_labels.numpy(), set()
    for seed in range(4):
        held_out = linear._stratified(data.train_labels, seed).numpy()
        scores = []
        for strength in linear.STRENGTHS[:7]:
            reference = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000)
            reference.fit(train[~held_out], labels[~held_out])
            scores.append(reference.score(train[held_out], labels[held_out]))
        chosen = _linear_top1(data, seed)[1]
        assert chosen == linear.STRENGTHS[scores.index(max(scores))]
        chosen_values.add(chosen)
    assert len(chosen_values) > 1


def test_the_held_out_tenth_is_stratified_and_leaves_every_class_in_train() -> None:
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 2 + [3])
    held_out = linear._stratified(labels, seed=0)
    assert labels[held_out].bincount(minlength=4).tolist() == [4, 2, 1, 0]
    assert not torch.equal(held_out, linear._stratified(labels, seed=1))


@pytest.mark.slow
def test_scale_and_offset_of_a_feature_do_not_matter() -> None:
    data = small.feature_set(spread=1.5)
    scale = torch.tensor([1.0, 1e3, 1e-2, 5.0, 1.0, 1.0])
    moved = FeatureSet(data.train * scale + 7, data.train_labels, data.test * scale + 7, data.test_labels)
    accuracy, _ = _linear_top1(data, seed=0)
    assert _linear_top1(moved, seed=0)[0] == pytest.approx(accuracy, abs=1.5 / len(data.test))
    constant = FeatureSet(
        torch.cat([data.train, torch.full((len(data.train), 1), 3.0)], 1),
        data.train_labels,
        torch.cat([data.test, torch.full((len(data.test), 1), 3.0)], 1),
        data.test_labels,
    )
    assert _linear_top1(constant, seed=0)[0] == pytest.approx(accuracy, abs=1.5 / len(data.test))


# --- few labels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels_per_class", [1, 5])
def test_few_labels_is_the_nearest_class_mean_over_draws(labels_per_class: int) -> None:
    data = small.feature_set(spread=1.5)
    train, test = normalize(data.train.double().numpy()), normalize(data.test.double().numpy())
    scores = []
    for draw in range(7):
        index = few_labels.draw_labelled(data.train_labels, labels_per_class, seed=4, draw=draw).numpy()
        means = normalize(np.stack([train[rows].mean(axis=0) for rows in index]))
        scores.append(float(((test @ means.T).argmax(axis=1) == data.test_labels.numpy()).mean()))
    result = few_labels.few_labels(data, labels_per_class, draws=7, seed=4)
    assert result.accuracies == pytest.approx(scores)
    assert result.mean == pytest.approx(np.mean(scores))
    assert result.correct.sum() == pytest.approx(7 * len(data.test) * result.mean)
    assert result.stderr == pytest.approx(np.std(scores, ddof=1) / math.sqrt(7))
    assert result.stderr > 0


def test_draws_are_balanced_without_repeats_and_differ() -> None:
    labels = small.feature_set().train_labels
    draws = [few_labels.draw_labelled(labels, 5, seed=0, draw=draw) for draw in range(20)]
    for index in draws:
        assert index.shape == (4, 5)
        assert all((labels[rows] == label).all() for label, rows in enumerate(index))
        assert all(len(set(rows.tolist())) == 5 for rows in index)
    assert len({tuple(index.flatten().tolist()) for index in draws}) == 20
    # Every image has its chance: 20 draws of 5 out of 30.
    counts = Counter(torch.stack(draws)[:, 0].flatten().tolist())
    assert len(counts) > 20


def test_all_features_of_a_dataset_get_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    original, met = few_labels.draw_labelled, []

    def watch(*arguments: Any) -> torch.Tensor:
        met.append(original(*arguments))
        return met[-1]

    monkeypatch.setattr(few_labels, "draw_labelled", watch)
    data = small.feature_set()
    other = FeatureSet(torch.randn(len(data.train), 99), data.train_labels, torch.randn(60, 99), data.test_labels)
    few_labels.few_labels(data, 2, draws=4, seed=1)
    torch.rand(5)
    few_labels.few_labels(other, 2, draws=4, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(met[:4], met[4:], strict=True))


def test_few_labels_refuses_more_labels_than_a_class_has() -> None:
    data = small.feature_set(per_class=30)
    few_labels.few_labels(data, 30, draws=2, seed=0)
    with pytest.raises(ProtocolError, match="labels_per_class = 31.*30"):
        few_labels.few_labels(data, 31, draws=2, seed=0)


# --- features ------------------------------------------------------------------------------------------------------


def test_features_are_pooled_in_eval_mode_without_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_BATCH_SIZE", 100)
    data = small.few_digits()
    backbone = untrained_backbone(small.spec().backbone, seed=0)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    result = features.network_features(backbone, data, torch.device("cpu"))
    assert backbone.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    with torch.no_grad():
        expected = backbone.eval()(normalised(data.train.images))
    torch.testing.assert_close(result.train, expected, rtol=1e-4, atol=1e-5)
    assert result.train.shape == (270, 16)
    assert torch.equal(result.test_labels, data.test.labels)
    assert not backbone.training
    features.network_features(backbone, data, torch.device("cpu"))
    assert not backbone.training  # the mode is put back, whichever it was


def test_pixels_are_pixels() -> None:
    data = small.few_digits()
    result = features.pixel_features(data)
    assert result.train.shape == (270, 192)
    assert torch.equal(result.train[3], data.train.images[3].reshape(-1) / 255)


# --- the run -------------------------------------------------------------------------------------------------------


def evaluate_spec(**changes: Any) -> EvaluateSpec:
    sent = {"data": {"name": "digits", "image_size": 8}, "features": {"kind": "pixels"}, "draws": 5, "knn_k": 5}
    parsed = parse_spec("evaluate", sent | changes)
    assert isinstance(parsed, EvaluateSpec)
    return parsed


def test_each_protocol_is_one_result_pinned_to_its_data_and_version() -> None:
    data, reporter = small.few_digits(), MemoryReporter()
    assert evaluate(evaluate_spec(seed=3), reporter, data=data) == "succeeded"
    results = reporter.of("evaluation")
    named = [(r["protocol"], r["metric"], r["params"].get("labels_per_class")) for r in results]
    assert named == [
        ("knn", "top1", None),
        ("linear", "top1", None),
        ("linear", "mean_per_class", None),
        ("few_labels", "top1", 1),
        ("few_labels", "top1", 5),
    ]
    for result in results:
        assert result["dataset_digest"] == data.digest
        assert result["split_digest"] == data.test.digest
        assert (result["seed"], result["n"], result["protocol_version"]) == (3, 364, 1)
        assert 0.3 < result["value"] <= 1
        assert (result["stderr"] is None) == (result["protocol"] != "few_labels")
    assert results[0]["params"] == {"k": 5, "temperature": 0.07}
    assert results[0]["value"] == small.knn_top1(features.pixel_features(data), 5, 0.07)
    assert results[1]["params"] == {"form": "lbfgs"}
    assert results[1]["details"]["C"] in linear.STRENGTHS  # chosen, so it does not identify the result
    progress = reporter.of("progress")
    assert [record["step"] for record in progress] == [0, 1, 2, 3, 4]
    assert {record["total_steps"] for record in progress} == {4}
    assert [record["eta_seconds"] for record in progress] == [None] * 4 + [0.0]  # parts differ by orders of magnitude


def test_an_evaluation_reports_the_share_of_a_long_part_and_the_time_left_of_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluation_progress, "_REPORT_SECONDS", 0.0)
    monkeypatch.setattr(features, "_BATCH_SIZE", 317)  # three batches: 270 of train, 317 and 47 of test
    reporter = MemoryReporter()
    untrained = {"kind": "untrained", "backbone": small.spec().backbone.model_dump()}
    spec = evaluate_spec(protocols=["knn", "few_labels"], features=untrained)
    assert evaluate(spec, reporter, data=small.few_digits()) == "succeeded"
    progress = [(each["step"], each.get("share"), each["eta_seconds"]) for each in reporter.of("progress")]
    assert [(step, share) for step, share, _ in progress] == [
        (0, None),
        (0, pytest.approx(270 / 634, abs=1e-4)),
        (0, pytest.approx(587 / 634, abs=1e-4)),
        (0, 1.0),
        (1, None),
        (2, None),
        (2, 0.5),
        (2, 1.0),
        (3, None),
    ]
    parts = [each.get("part") for each in reporter.of("progress")]
    works = [f"{each} of the untrained network" for each in ("features", "kNN", "few labels")]
    assert [*dict.fromkeys(parts)] == [*works, None]
    assert [left is not None for *_, left in progress] == [False] * 6 + [True] * 3


def test_a_checkpoints_features_are_its_backbones(tmp_path: Path) -> None:
    data, spec = small.few_digits(), small.spec(seed=5)
    tensors = {f"model/{name}": tensor for name, tensor in small.model(spec).state_dict().items()}
    facts = {"spec": resolve_spec(spec), "step": 1, "epoch": 0}
    path = checkpoint.write(tmp_path / "one.safetensors", tensors, facts).path
    from_file, untrained = MemoryReporter(), MemoryReporter()
    kind = {"kind": "checkpoint", "checkpoint_id": "0190b5a0-0000-7000-8000-000000000000"}
    evaluate(evaluate_spec(protocols=["knn"], features=kind), from_file, data=data, checkpoint_path=path)
    # A run starts from an untrained network of the same seed.
    kind = {"kind": "untrained", "backbone": spec.backbone.model_dump()}
    evaluate(evaluate_spec(protocols=["knn"], features=kind, seed=5), untrained, data=data)
    assert from_file.of("evaluation")[0]["value"] == untrained.of("evaluation")[0]["value"]


def test_a_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    spec = evaluate_spec(features={"kind": "checkpoint", "checkpoint_id": "0190b5a0-0000-7000-8000-000000000000"})
    for path in (None, tmp_path / "none.safetensors"):
        with pytest.raises(CheckpointError, match="no checkpoint file|does not exist"):
            evaluate(spec, MemoryReporter(), data=small.few_digits(), checkpoint_path=path)


@pytest.mark.parametrize(("verb", "outcome"), [("cancel", "cancelled"), ("drain", "drained"), ("pause", "paused")])
def test_a_request_stops_an_evaluation_between_protocols(verb: Any, outcome: str) -> None:
    reporter = MemoryReporter(lambda records: verb if any(r["type"] == "evaluation" for r in records) else None)
    assert evaluate(evaluate_spec(), reporter, data=small.few_digits()) == outcome
    assert [record["protocol"] for record in reporter.of("evaluation")] == ["knn"]


def test_an_early_request_stops_an_evaluation_before_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wcl_core.evaluation.run.pixel_features", None)
    reporter = MemoryReporter(lambda _: "cancel")
    assert evaluate(evaluate_spec(), reporter, data=small.few_digits()) == "cancelled"


def test_a_protocol_that_cannot_measure_the_data_names_its_field() -> None:
    with pytest.raises(ProtocolError, match="knn_k"):
        evaluate(evaluate_spec(knn_k=20), MemoryReporter(), data=small.few_digits())
    spec = evaluate_spec(protocols=["few_labels"], labels_per_class=[200])
    with pytest.raises(ProtocolError, match="labels_per_class"):
        evaluate(spec, MemoryReporter(), data=small.few_digits())


@pytest.mark.parametrize("label", [4, 9])
def test_a_class_without_train_images_is_refused(label: int) -> None:
    data = small.few_digits()
    some = data.train.labels != label
    train = Split(data.train.images[some], data.train.labels[some], "")
    with pytest.raises(ProtocolError, match="knn_k"):
        evaluate(evaluate_spec(), MemoryReporter(), data=ImageData("", train, data.test, data.classes, ""))
