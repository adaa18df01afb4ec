"""The results of each protocol: metric, value and parameters.

`params` holds the settings and identifies a result. `details` holds by-products, such as a chosen strength, and may
differ between seeds. `wcl_core.config.PROTOCOLS` lists the metrics of each protocol.
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
from wcl_core.evaluation.accuracy import mean_per_class, top1
from wcl_core.evaluation.features import FeatureSet
from wcl_core.evaluation.progress import Progress

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
    yield _result("knn", knn.VERSION, params, knn.knn_top1(subject.features, spec.knn_k, spec.knn_temperature))


def _knn_wide(spec: EvaluateSpec, data: ImageData, subject: Subject, progress: Progress) -> Iterator[Result]:
    del spec, data, progress
    params = {"k": WIDE_K, "temperature": WIDE_TEMPERATURE}
    value = knn.knn_top1(subject.features, WIDE_K, WIDE_TEMPERATURE, "protocols: k of knn_wide")
    yield _result("knn_wide", knn.VERSION, params, value)


def _linear(spec: EvaluateSpec, data: ImageData, subject: Subject, progress: Progress) -> Iterator[Result]:
    del progress
    predicted, strength = linear.linear_classes(subject.features, spec.seed)
    for metric, measure in (("top1", top1), ("mean_per_class", mean_per_class)):
        value = measure(predicted, data.test.labels)
        yield _result("linear", linear.VERSION, {"form": "lbfgs"}, value, metric, {"C": strength})


def _linear_sgd(spec: EvaluateSpec, data: ImageData, subject: Subject, progress: Progress) -> Iterator[Result]:
    config = spec.linear_sgd
    trained = linear_sgd.linear_sgd(
        subject.backbone, data, config, spec.data.image_size, spec.seed, subject.device, progress
    )
    params = {"form": "sgd", "epoch": "last", **config.model_dump(), "batch_size": trained.batch_size}
    for metric, measure in (("top1", top1), ("mean_per_class", mean_per_class)):
        yield _result("linear_sgd", linear_sgd.VERSION, params, measure(trained.predicted, data.test.labels), metric)
    best = params | {"epoch": "best, selected on test"}
    facts = {"best_epoch": trained.best_epoch}
    yield _result("linear_sgd", linear_sgd.VERSION, best, trained.best_top1, "top1_selected_on_test", facts)


def _few_labels(spec: EvaluateSpec, data: ImageData, subject: Subject, progress: Progress) -> Iterator[Result]:
    del data
    todo = [(classifier, count) for classifier in spec.few_labels_classifiers for count in spec.labels_per_class]
    for place, (classifier, count) in enumerate(todo, start=1):
        value, stderr = few_labels.few_labels_top1(subject.features, count, spec.draws, spec.seed, classifier)
        params: dict[str, Any] = {"classifier": classifier, "labels_per_class": count, "draws": spec.draws}
        if classifier == "linear":
            params["C"] = few_labels.LINEAR_STRENGTH
        yield {**_result("few_labels", few_labels.VERSION, params, value), "stderr": stderr}
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
    values = {
        "recall_at_1": (ranking.recall_at_1, {"examples": ranking.examples}),
        "recall_at_5": (ranking.recall_at_5, None),
        "mean_average_precision": (ranking.mean_average_precision, {"by_class": list(ranking.by_class)}),
    }
    for metric, (value, details) in values.items():
        yield _result("retrieval", retrieval.VERSION, {"relevant": "same class"}, value, metric, details)


def _result(
    protocol: str,
    version: int,
    params: dict[str, Any],
    value: float,
    metric: str = "top1",
    details: dict[str, Any] | None = None,
) -> Result:
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
