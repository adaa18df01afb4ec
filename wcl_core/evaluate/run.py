"""One evaluation run: features once, then every protocol the spec names, each result pinned to data and version."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from wcl_core import checkpoint
from wcl_core.backbones import build_backbone
from wcl_core.config import BackboneConfig, CheckpointFeatures, EvaluateSpec, PixelFeatures, PretrainSpec
from wcl_core.data import ImageData, derived_seed
from wcl_core.evaluate import few_labels, knn, linear
from wcl_core.evaluate.features import FeatureSet, network_features, pixel_features
from wcl_core.reporter import OUTCOME_OF, Outcome, Reporter


def evaluate(
    spec: EvaluateSpec, reporter: Reporter, *, data: ImageData, checkpoint_path: Path | None = None
) -> Outcome:
    """Measure one set of features under the spec's protocols.

    Args:
        spec: what to measure.
        reporter: told every result; asked at the start and between protocols whether to stop.
        data: both splits at the spec's image size.
        checkpoint_path: the native checkpoint when the spec's features come from one.

    Raises:
        checkpoint.CheckpointError: missing or damaged checkpoint.
        knn.ProtocolError: a protocol that this data cannot carry.
    """
    started_at = time.monotonic()
    total = len(spec.protocols) + 1
    reporter.progress(step=0, total_steps=total, epoch=0, total_epochs=1, phase="evaluate")
    if request := reporter.request():
        return OUTCOME_OF[request]
    features = _features(spec, data, checkpoint_path)
    for done, protocol in enumerate(spec.protocols, start=1):
        if request := reporter.request():
            return OUTCOME_OF[request]
        elapsed = time.monotonic() - started_at
        reporter.progress(
            step=done,
            total_steps=total,
            epoch=done / total,
            total_epochs=1,
            phase="evaluate",
            eta_seconds=elapsed / done * (total - done),
        )
        for result in _results(protocol, spec, features):
            reporter.evaluation(
                {
                    "dataset_digest": data.digest,
                    "split_digest": data.test.digest,
                    "seed": spec.seed,
                    "n": len(data.test),
                    "stderr": None,
                    **result,
                }
            )
    reporter.progress(step=total, total_steps=total, epoch=1, total_epochs=1, phase="evaluate", eta_seconds=0)
    return "succeeded"


def load_backbone(path: Path) -> tuple[torch.nn.Module, PretrainSpec]:
    """The backbone of a native checkpoint and the spec it was trained under.

    Raises:
        checkpoint.CheckpointError: when the file is missing or damaged.
    """
    saved = checkpoint.read(path)
    backbone = build_backbone(saved.spec.backbone)
    backbone.load_state_dict(saved.part("model/backbone."))
    return backbone, saved.spec


def untrained_backbone(config: BackboneConfig, seed: int) -> torch.nn.Module:
    """A fresh backbone that equals the one `pretrain` starts from under the same seed."""
    torch.manual_seed(derived_seed(seed, "initialisation"))
    return build_backbone(config)


def _features(spec: EvaluateSpec, data: ImageData, checkpoint_path: Path | None) -> FeatureSet:
    if isinstance(spec.features, PixelFeatures):
        return pixel_features(data)
    if isinstance(spec.features, CheckpointFeatures):
        if checkpoint_path is None:
            raise checkpoint.CheckpointError("no checkpoint file was given for features.kind = checkpoint")
        backbone, _ = load_backbone(checkpoint_path)
    else:
        backbone = untrained_backbone(spec.features.backbone, spec.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return network_features(backbone.to(device), data, device)


def _results(protocol: str, spec: EvaluateSpec, features: FeatureSet) -> Iterator[dict[str, Any]]:
    if protocol == "knn":
        params: dict[str, Any] = {"k": spec.knn_k, "temperature": spec.knn_temperature}
        value = knn.knn_top1(features, spec.knn_k, spec.knn_temperature)
        yield _result(protocol, knn.VERSION, params, value)
    elif protocol == "linear":
        value, strength = linear.linear_top1(features, spec.seed)
        yield _result(protocol, linear.VERSION, {"form": "lbfgs", "C": strength}, value)
    else:
        for count in spec.labels_per_class:
            value, stderr = few_labels.few_labels_top1(features, count, spec.draws, spec.seed)
            params = {"classifier": "nearest_class_mean", "labels_per_class": count, "draws": spec.draws}
            yield {**_result(protocol, few_labels.VERSION, params, value), "stderr": stderr}


def _result(protocol: str, version: int, params: dict[str, Any], value: float) -> dict[str, Any]:
    return {"protocol": protocol, "protocol_version": version, "metric": "top1", "params": params, "value": value}
