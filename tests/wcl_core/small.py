"""Small specs, datasets and features for the tests of `wcl_core`: a whole run takes a fraction of a second."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from wcl_core import data
from wcl_core.config import PretrainSpec, parse_spec
from wcl_core.data import ImageData, Split
from wcl_core.evaluation.features import FeatureSet
from wcl_core.evaluation.knn import knn_correct
from wcl_core.methods import build_method
from wcl_core.networks.model import Model
from wcl_core.reporter import NullReporter

STEPS_PER_EPOCH, EPOCHS = 4, 3
TOTAL_STEPS = STEPS_PER_EPOCH * EPOCHS


def fields(**changes: Any) -> dict[str, Any]:
    """Return the fields of a pretrain spec as a client sends them: twelve steps of a tiny network."""
    return {
        "data": {"name": "digits", "image_size": 8},
        "epochs": EPOCHS,
        "batch_size": 64,
        "backbone": {"name": "tiny", "width": 4},
        "heads": {"hidden_dim": 16, "output_dim": 8},
        "optimizer": {"name": "sgd", "learning_rate": 0.06, "scaling": "linear", "weight_decay": 5e-4},
        "warmup_epochs": 1,
        "weak_augmentation_epochs": 1,
        "log_every_steps": 1,
        "knn_every_epochs": 1,
        "threads": 1,
        **changes,
    }


def spec(**changes: Any) -> PretrainSpec:
    parsed = parse_spec("pretrain", fields(**changes))
    assert isinstance(parsed, PretrainSpec)
    return parsed


def model(spec: PretrainSpec) -> Model:
    """Return the model that a run of the spec starts from."""
    return Model(spec, build_method(spec))


@cache
def digits() -> ImageData:
    return data.load("digits", "builtin", None, 8, 0.0, NullReporter())


@cache
def few_digits() -> ImageData:
    """Return four batches of 64 images and some more, so that an incomplete batch exists."""
    whole = digits()
    train = Split(whole.train.images[:270], whole.train.labels[:270], whole.train.digest)
    return ImageData(whole.name, train, whole.test, whole.classes, whole.digest)


def curves(records: list[dict[str, Any]]) -> dict[tuple[str, int], float | None]:
    """Return all metrics by name and step, without those that depend on the machine."""
    return {
        (name, record["step"]): value
        for record in records
        if record["type"] == "metrics"
        for name, value in record["values"].items()
        if name != "train/images_per_second" and not name.startswith("system/")
    }


def knn_top1(features: FeatureSet, k: int, temperature: float) -> float:
    """Return the kNN accuracy of features."""
    return float(knn_correct(features, k, temperature).double().mean())


def feature_set(num_classes: int = 4, per_class: int = 30, dim: int = 6, spread: float = 1.0) -> FeatureSet:
    """Return features of overlapping Gaussian classes."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(num_classes, dim, generator=generator)
    splits = []
    for count in (per_class, per_class // 2):
        labels = torch.arange(num_classes).repeat_interleave(count)
        order = torch.randperm(len(labels), generator=generator)
        noise = spread * torch.randn(len(labels), dim, generator=generator)
        splits += [(centres[labels] + noise)[order], labels[order]]
    return FeatureSet(*splits)
