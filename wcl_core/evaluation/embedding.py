"""Embeddings: the features of a whole dataset as one file, for other programs.

    train/features, test/features   (N, D) float16, pooled, as computed: neither centred nor normalised
    train/labels, test/labels       (N,) int64 classes
    train/index, test/index         (N,) int64, place of the image in its split
    unlabelled/...                  in their place for a dataset without labels; its labels are -1
    metadata["wcl"]                 canonical JSON: dataset, classes, features, seed

The file is written and digested like a checkpoint, but no run can start from it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from wcl_core import checkpoint
from wcl_core.checkpoint import Written
from wcl_core.config import EvaluateSpec
from wcl_core.data import ImageData
from wcl_core.evaluation.features import FeatureSet
from wcl_core.evaluation.knn import ProtocolError

VERSION = 1
FILE_NAME = "embeddings.safetensors"


def write_embeddings(path: Path, features: FeatureSet, spec: EvaluateSpec, data: ImageData) -> Written:
    """Write the features of both splits, or of the unlabelled split of a dataset without labels.

    Raises:
        ProtocolError: a feature is not finite in float16.
        OSError: as `checkpoint.write`.
    """
    splits = {"train": data.train, "test": data.test}
    if data.unlabelled is not None and not len(data.train):
        splits = {"unlabelled": data.unlabelled}
    tensors: dict[str, Tensor] = {}
    for split, images in splits.items():
        labels, values = images.labels, getattr(features, split)
        half = values.to(torch.float16)
        if not bool(torch.isfinite(half).all()):
            raise ProtocolError(
                f"protocols: embed stores float16, but a feature of the {split} split exceeds it; remove embed"
            )
        tensors |= {f"{split}/features": half, f"{split}/labels": labels, f"{split}/index": torch.arange(len(labels))}
    facts = {
        "kind": "embeddings",
        "protocol_version": VERSION,
        "dataset": data.name,
        "dataset_digest": data.digest,
        "split_digests": {split: images.digest for split, images in splits.items()},
        "classes": list(data.classes),
        "image_size": spec.data.image_size,
        "features": spec.features.model_dump(mode="json"),
        "seed": spec.seed,
    }
    return checkpoint.write(path, tensors, facts)
