"""Trials: a training run on one thread and the measures of its last epoch; a file keeps finished trials.

train split, every class in one fixed order:   | fold 0 | fold 1 | ... | fold 9 |
a trial of the search                            one fold replaces the test split, the others are the train split
a trial of the comparison                        the whole train split and the test split
at most `per_class` train images                 the last ones of that order, so the same in both kinds of trial
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from wcl_core.config import EvaluateSpec, PretrainSpec, parse_spec, resolve_spec
from wcl_core.data import ImageData, Split, derived_seed, kind_of, load
from wcl_core.data.images import tensor_digest
from wcl_core.evaluation.run import evaluate
from wcl_core.presets import presets
from wcl_core.reporter import MemoryReporter, NullReporter
from wcl_core.training.pretrain import pretrain

FOLDS = 10
PRIMARY = ("1 label/class", "5 labels/class", "kNN k=20")
MEASURES = (*PRIMARY, "linear, all labels")
PRECISIONS = ("pair precision, first epochs", "pair precision, last epochs", "pair precision, chance")
# Fields of a spec by dotted name, and their values.
Settings = dict[str, Any]
Measured = dict[str, float]


@dataclass(frozen=True)
class Source:
    """The source of the images: the built-in digits, or a folder, with at most `per_class` train images of a class."""

    folder: Path | None = None
    per_class: int | None = None

    @property
    def name(self) -> str:
        return "digits" if self.folder is None else self.folder.name

    @property
    def preset(self) -> str:
        return "digits-cpu" if self.folder is None else "cifar10-cpu"


@dataclass(frozen=True)
class Trial:
    """One trial: `settings` change the source's preset; without a `fold` the test split is read."""

    source: Source
    method: str
    seed: int
    settings: tuple[tuple[str, Any], ...]
    fold: int | None

    def spec(self) -> PretrainSpec:
        """Return the spec of the run; kNN during training is off, because it would read the test split."""
        fields = resolve_spec(presets()[self.source.preset])
        fields["data"]["name"] = self.source.name
        fields |= {"method": self.method, "seed": self.seed, "threads": 1, "knn_every_epochs": 0}
        for path, value in self.settings:
            *parents, last = path.split(".")
            section = fields
            for parent in parents:
                section = section[parent]
            section[last] = value
        fields["checkpoints"] |= {"every_epochs": fields["epochs"], "first_epoch": False}
        spec = parse_spec("pretrain", fields)
        assert isinstance(spec, PretrainSpec)
        return spec

    @property
    def key(self) -> str:
        """Return a digest of all that the result depends on, as 64 hex digits."""
        parts = [resolve_spec(self.spec()), resolve_spec(_evaluation(self.spec())), self.fold, self.source.per_class]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def images(source: Source) -> ImageData:
    """Return all images at the preset's size."""
    size = presets()[source.preset].data.image_size
    return load(source.name, kind_of(source.folder), source.folder, size, 0.01, NullReporter())


def dataset(source: Source, fold: int | None) -> ImageData:
    """Return the data of a trial, as drawn in the module's docstring."""
    whole = images(source)
    train, held = parts(whole.train.labels, source.per_class, fold)
    test = whole.test if fold is None else _part(whole.train, held)
    return ImageData(whole.name, _part(whole.train, train), test, whole.classes, whole.digest)


def parts(labels: Tensor, per_class: int | None, fold: int | None) -> tuple[Tensor, Tensor]:
    """Return the indices of the train images and of the held-out images.

    Args:
        labels: (N,) int64 classes of the train split.
        per_class: maximum number of train images of each class; None for all.
        fold: the held-out tenth of each class; None for none.

    Returns:
        Two disjoint int64 tensors, both with the class shares of `labels`.
    """
    generator = torch.Generator().manual_seed(derived_seed(0, "held out"))
    train, held = [], []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        order = members[torch.randperm(len(members), generator=generator)]
        size = len(order) // FOLDS
        start, stop = (0, 0) if fold is None else (fold * size, (fold + 1) * size)
        rest = torch.cat((order[:start], order[stop:]))
        train.append(rest if per_class is None else rest[-per_class:])
        held.append(order[start:stop])
    return torch.cat(train).sort().values, torch.cat(held).sort().values


def _part(split: Split, chosen: Tensor) -> Split:
    pixels, labels = split.images[chosen], split.labels[chosen]
    return Split(pixels, labels, tensor_digest(pixels, labels))


def run(trial: Trial) -> Measured:
    """Train and evaluate; return accuracies by measure and, for WCL, the pair precision of the weak labels."""
    torch.set_num_threads(1)
    spec, data = trial.spec(), dataset(trial.source, trial.fold)
    with tempfile.TemporaryDirectory() as folder:
        training, measured = MemoryReporter(), MemoryReporter()
        pretrain(spec, training, dataset=data, output_dir=Path(folder))
        path = Path(folder) / training.of("checkpoint")[-1]["path"]
        evaluate(_evaluation(spec), measured, data=data, checkpoint_path=path)
    return _accuracies(measured.of("evaluation")) | _precisions(training.of("metrics"))


def _evaluation(spec: PretrainSpec) -> EvaluateSpec:
    """Return the evaluation spec, with the same draws of labelled images for every method and seed."""
    parsed = parse_spec(
        "evaluate",
        {
            "data": {"name": spec.data.name, "image_size": spec.data.image_size},
            "features": {"kind": "checkpoint", "checkpoint_id": str(uuid.UUID(int=0))},
            "protocols": ["knn", "linear", "few_labels"],
            "few_labels_classifiers": ["nearest_class_mean"],
            "labels_per_class": [1, 5],
            "draws": 20,
            "threads": 1,
        },
    )
    assert isinstance(parsed, EvaluateSpec)
    return parsed


def _accuracies(records: Iterable[Mapping[str, Any]]) -> Measured:
    accuracies: Measured = {}
    for record in records:
        if record["metric"] != "top1":
            continue
        protocol, value = record["protocol"], record["value"]
        if protocol == "few_labels":
            count = record["params"]["labels_per_class"]
            accuracies[f"{count} label{'s' if count > 1 else ''}/class"] = value
        else:
            accuracies[{"knn": "kNN k=20", "linear": "linear, all labels"}[protocol]] = value
    return accuracies


def _precisions(records: Iterable[Mapping[str, Any]]) -> Measured:
    """Return means over the first and the last tenth of the logs; empty for SimCLR, which has no weak labels."""
    logged = [record["values"] for record in records if "weak/pair_precision" in record["values"]]
    if not logged:
        return {}
    size = max(1, len(logged) // 10)
    values = [one["weak/pair_precision"] for one in logged]
    chance = mean(one["weak/pair_precision_chance"] for one in logged)
    return dict(zip(PRECISIONS, (mean(values[:size]), mean(values[-size:]), chance), strict=True))


class Bench:
    """Trials in parallel; each is kept as a line of `finished`, so that an interrupted benchmark continues."""

    def __init__(self, executor: Executor, finished: Path) -> None:
        self._executor, self._path = executor, finished
        lines = finished.read_text().splitlines() if finished.exists() else []
        self._finished: dict[str, Measured] = {entry["key"]: entry["measured"] for entry in map(json.loads, lines)}

    def measure(self, trials: list[Trial]) -> list[Measured]:
        """Return results in the order of the trials; run only those that are not finished yet."""
        missing = {trial.key: trial for trial in trials if trial.key not in self._finished}
        futures = {self._executor.submit(run, trial): key for key, trial in missing.items()}
        for future in as_completed(futures):
            self._keep(futures[future], future.result())
        return [self._finished[trial.key] for trial in trials]

    def _keep(self, key: str, measured: Measured) -> None:
        self._finished[key] = measured
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps({"key": key, "measured": measured}) + "\n")
