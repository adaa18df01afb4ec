"""Embeddings: the features of a whole dataset as one file, for tables and other programs.

    train/features, test/features   (N, D) float16, pooled, as computed: neither centred nor normalised
    train/labels, test/labels       (N,) int64 classes
    train/index, test/index         (N,) int64, place of the image in its split
    train/paths, test/paths         (bytes,) uint8, the path of each image below its folder, UTF-8 and ended by a line
                                    feed; absent if the images come from no folder
    unlabelled/...                  of further images without labels, or of a dataset without labels; its labels are -1
    metadata["wcl"]                 canonical JSON: dataset, classes, features, seed

The file is written and digested like a checkpoint, but no run can start from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wcl_core import checkpoint
from wcl_core.checkpoint import CheckpointError, Written
from wcl_core.config import EvaluateSpec
from wcl_core.data import ImageData
from wcl_core.data.layout import shown
from wcl_core.evaluation.features import FeatureSet
from wcl_core.evaluation.knn import ProtocolError

VERSION = 2
SPLITS = ("train", "test", "unlabelled")


def write_embeddings(path: Path, features: FeatureSet, spec: EvaluateSpec, data: ImageData) -> Written:
    """Write the features of all splits that have images.

    Raises:
        ProtocolError: a feature is not finite in float16.
        OSError: as `checkpoint.write`.
    """
    splits = {"train": data.train, "test": data.test}
    if data.unlabelled is not None:
        splits = {**(splits if len(data.train) else {}), "unlabelled": data.unlabelled}
    tensors: dict[str, Tensor] = {}
    for split, images in splits.items():
        labels, values = images.labels, getattr(features, split)
        half = values.to(torch.float16)
        if not bool(torch.isfinite(half).all()):
            raise ProtocolError(
                f"protocols: embed stores float16, but a feature of the {split} split exceeds it; remove embed"
            )
        tensors |= {f"{split}/features": half, f"{split}/labels": labels, f"{split}/index": torch.arange(len(labels))}
        if images.files:
            lines = "".join(f"{shown(file)}\n" for file in images.files).encode()
            tensors[f"{split}/paths"] = torch.frombuffer(bytearray(lines), dtype=torch.uint8)
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


@dataclass(frozen=True)
class Embeddings:
    """The features of a dataset, a row for each image.

    Attributes:
        dataset: its name.
        image_size: side in pixels of the images that the features are of.
        splits: of each image, `train`, `test` or `unlabelled`.
        paths: below the folder of the dataset; for images from no folder, the split and the place in it.
        labels: the name of each image's class; empty without one.
        features: (N, D) float32.
    """

    dataset: str
    image_size: int
    splits: list[str]
    paths: list[str]
    labels: list[str]
    features: Tensor


def read_embeddings(file: Path, only: str | None = None) -> Embeddings:
    """Read a file of embeddings.

    Args:
        file: written by `write_embeddings`.
        only: the split to read; by default all.

    Raises:
        CheckpointError: the file is absent or damaged, has no embeddings, or has no such split.
    """
    saved = checkpoint.read(file)
    facts = saved.metadata
    if facts.get("kind") != "embeddings":
        raise CheckpointError(f"{file.name} has no features of a dataset; expected a file of the protocol embed")
    present = [split for split in SPLITS if len(saved.tensors.get(f"{split}/labels", ()))]
    if only is not None and only not in present:
        raise CheckpointError(f"dataset {facts['dataset']} has no split {only}; it has {', '.join(present)}")
    splits: list[str] = []
    paths: list[str] = []
    labels: list[str] = []
    for split in present if only is None else [only]:
        part = saved.part(f"{split}/")
        places = part["index"].tolist()
        names = [f"{split}/{place}" for place in places]
        if "paths" in part:
            names = part["paths"].numpy().tobytes().decode().split("\n")[:-1]
        splits += [split] * len(places)
        paths += names
        labels += [facts["classes"][label] if label >= 0 else "" for label in part["labels"].tolist()]
    rows = torch.cat([saved.tensors[f"{split}/features"] for split in (present if only is None else [only])]).float()
    return Embeddings(facts["dataset"], facts["image_size"], splits, paths, labels, rows)
