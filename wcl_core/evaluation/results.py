"""The results of each protocol: metric, value and parameters.

`params` holds the settings and identifies a result. `details` holds by-products, such as a chosen strength, and may
differ between seeds; its `per_image` says which test images were classified correctly (`wcl_core.per_image`).
`wcl_core.config.PROTOCOLS` lists the metrics of each protocol.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wcl_core.config import WIDE_K, WIDE_TEMPERATURE, EvaluateSpec
from wcl_core.data import ImageData
from wcl_core.evaluation import few_labels, knn, linear, linear_sgd, retrieval, semi_supervised
from wcl_core.evaluation.accuracy import mean_per_class
from wcl_core.evaluation.features import FeatureSet
from wcl_core.evaluation.progress import Progress
from wcl_core.per_image import KEY, packed

Result = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """The object of the measurement: the network in eval mode on its device, and its features of both splits."""

    backbone: nn.Module
    features: FeatureSet
    device: torch.device


def results(
    protocol: str, spec: EvaluateSpec, data: ImageData, subject: Subject, progress: Progress
) -> Iterator[Result]:
    """Measure under one protocol, and yield each result.

    Raises:
        knn.ProtocolError: the protocol cannot measure this data.
        Interrupted: a request stopped the run.
    """
    return _PROTOCOLS[protocol](spec, data, subject, progress)


def _knn(spec: EvaluateSpec, data: ImageData, subject: Subject, progress: Progress) -> Iterator[Result]:
    del data, progress
    params = {"k": spec.knn_k, "temperature": spec.knn_temperature}
    yield _result("knn", knn.VERSION, params, knn.knn_correct(subject.features, spec.knn_k, spec.knn_temperature))


def _knn_wide(spec: EvaluateSpec, data: ImageData, subject: Subject, progress: Progress) -> Iterator[Result]:
    del spec, data, progress
    params = {"k": WIDE_K, "temperature": WIDE_TEMPERATURE}
    correct = knn.knn_correct(subject.features, WIDE_K, WIDE_TEMPERATURE, "protocols: k of knn_wide")
    yield _result("knn_wide", knn.VERSION, params, correct)


def _linear(spec: EvaluateSpec, data: ImageData, subject: Subject, progress: Progress) -> Iterator[Result]:
    del progress
    predicted, strength = linear.linear_classes(subject.features, spec.seed)
    params, details = {"form": "lbfgs"}, {"C": strength}
    yield _result("linear", linear.VERSION, params, predicted == data.test.labels, "top1", details)
    per_class = mean_per_class(predicted, data.test.labels)
    yield _result("linear", linear.VERSION, params, per_class, "mean_per_class", details)


def _linear_sgd(spec: EvaluateSpec, data: ImageData, subject: Subject, progress: Progress) -> Iterator[Result]:
    config = spec.linear_sgd
    trained = linear_sgd.linear_sgd(
        subject.backbone, data, config, spec.data.image_size, spec.seed, subject.device, progress
    )
    params = {"form": "sgd", "epoch": "last", **config.model_dump(), "batch_size": trained.batch_size}
    yield _result("linear_sgd", linear_sgd.VERSION, params, trained.predicted == data.test.labels)
    per_class = mean_per_class(trained.predicted, data.test.labels)
    yield _result("linear_sgd", linear_sgd.VERSION, params, per_class, "mean_per_class")
    best = params | {"epoch": "best, selected on test"}
    facts = {"best_epoch": trained.best_epoch}
    yield _result("linear_sgd", linear_sgd.VERSION, best, trained.best_top1, "top1_selected_on_test", facts)


def _few_labels(spec: EvaluateSpec, data: ImageData, subject: Subject, progress: Progress) -> Iterator[Result]:
    del data
    todo = [(classifier, count) for classifier in spec.few_labels_classifiers for count in spec.labels_per_class]
    for place, (classifier, count) in enumerate(todo, start=1):
        accuracy = few_labels.few_labels(subject.features, count, spec.draws, spec.seed, classifier)
        params: dict[str, Any] = {"classifier": classifier, "labels_per_class": count, "draws": spec.draws}
        if classifier == "linear":
            params["C"] = few_labels.LINEAR_STRENGTH
        details = {"by_draw": list(accuracy.accuracies), KEY: packed(accuracy.correct.tolist(), spec.draws)}
        result = _result("few_labels", few_labels.VERSION, params, accuracy.mean, "top1", details)
        yield result | {"stderr": accuracy.stderr}
        progress.tick(place / len(todo))


def _semi_supervised(spec: EvaluateSpec, data: ImageData, subject: Subject, progress: Progress) -> Iterator[Result]:
    config = spec.semi_supervised
    todo = list(_labelled(spec, data))
    for place, (which, splits) in enumerate(todo):
        span = (place / len(todo), (place + 1) / len(todo))
        accuracy = semi_supervised.semi_supervised(
            subject.backbone, data, config, splits, spec.data.image_size, spec.seed, subject.device, progress, span
        )
        count = (
            {"labels": accuracy.labels}
            if "list" in which
            else {"labels_per_class": accuracy.labels // len(data.classes)}
        )
        params = which | count | config.model_dump(exclude={"shares", "lists"})
        details = {"splits": list(accuracy.split_digests), "accuracies": list(accuracy.accuracies)}
        details |= {KEY: packed(accuracy.correct.tolist(), config.splits)}
        yield {
            **_result("semi_supervised", semi_supervised.VERSION, params, accuracy.mean, "top1", details),
            "stderr": accuracy.stderr,
            "split_digest": hashlib.sha256((data.test.digest + accuracy.digest).encode()).hexdigest(),
        }


def _labelled(spec: EvaluateSpec, data: ImageData) -> Iterator[tuple[dict[str, Any], list[Tensor]]]:
    """Yield the labelled images to fine-tune on: each share with its random splits, each list as its only split."""
    config = spec.semi_supervised
    for share in config.shares:
        numbers = range(config.splits)
        splits = [semi_supervised.labelled_split(data.train.labels, share, spec.seed, number) for number in numbers]
        yield {"share": share}, splits
    for name in config.lists:
        if name not in data.label_lists:
            expected = f"expected one of {', '.join(data.label_lists)}" if data.label_lists else "none is registered"
            raise knn.ProtocolError(
                f"semi_supervised.lists: {data.name} has no list {name} on this machine; {expected}"
            )
        yield {"list": name}, [data.label_lists[name]]


def _retrieval(spec: EvaluateSpec, data: ImageData, subject: Subject, progress: Progress) -> Iterator[Result]:
    del data, progress
    ranking = retrieval.retrieval(subject.features, spec.retrieval_examples)
    values: dict[str, tuple[Tensor | float, dict[str, Any] | None]] = {
        "recall_at_1": (ranking.hits_at_1, {"examples": ranking.examples}),
        "recall_at_5": (ranking.hits_at_5, None),
        "mean_average_precision": (ranking.mean_average_precision, {"by_class": list(ranking.by_class)}),
    }
    for metric, (value, details) in values.items():
        yield _result("retrieval", retrieval.VERSION, {"relevant": "same class"}, value, metric, details)


def _result(
    protocol: str,
    version: int,
    params: dict[str, Any],
    value: float | Tensor,
    metric: str = "top1",
    details: dict[str, Any] | None = None,
) -> Result:
    """Return a result; a tensor has the test images that were classified correctly, (M,) bool."""
    if isinstance(value, Tensor):
        details = (details or {}) | {KEY: packed(value.tolist())}
        value = float(value.double().mean())
    return {
        "protocol": protocol,
        "protocol_version": version,
        "metric": metric,
        "params": params,
        "value": value,
        "details": details,
    }


_PROTOCOLS: dict[str, Callable[[EvaluateSpec, ImageData, Subject, Progress], Iterator[Result]]] = {
    "knn": _knn,
    "knn_wide": _knn_wide,
    "linear": _linear,
    "linear_sgd": _linear_sgd,
    "few_labels": _few_labels,
    "semi_supervised": _semi_supervised,
    "retrieval": _retrieval,
}
