"""WCL against SimCLR on a small data set: hyper-parameters on held-out train data, then paired seeds, test read once.

search   a tenth of the train split is held out; the test split is not touched
         SimCLR: its temperature; WCL: both temperatures, then weight and ramp of the weak loss at the best ones
compare  every seed trains both methods from the same weights, on the same batches and the same views

python benchmarks/methods.py [--data FOLDER --train-images 5000] [--seeds 5] [--workers 2]
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from measure.report import save_results, setting
from scipy.stats import t as student
from torch import Tensor

from wcl_core import data
from wcl_core.config import EvaluateSpec, PretrainSpec, parse_spec, resolve_spec
from wcl_core.data import ImageData, Split, derived_seed
from wcl_core.evaluate.run import evaluate
from wcl_core.presets import presets
from wcl_core.pretrain import pretrain
from wcl_core.reporter import MemoryReporter, NullReporter

TEMPERATURES = (0.1, 0.2)
WEIGHTS = (0.25, 0.5, 1.0)
RAMPS = (0.0, 0.2)
SEARCH_SEEDS = (1000,)
# A run is chosen by the mean of these on the held-out images.
MEASURES = ("1 label/class", "5 labels/class", "kNN k=20", "linear")


@dataclass(frozen=True)
class Source:
    """Where the images come from: the built-in digits, or a folder of which some train images are used."""

    folder: Path | None
    num_train: int

    @property
    def preset(self) -> str:
        return "digits-cpu" if self.folder is None else "cifar10-cpu"


@dataclass(frozen=True)
class Trial:
    """One training run and its evaluation; `is_search` says that the held-out tenth stands for the test split."""

    source: Source
    method: str
    seed: int
    loss: tuple[tuple[str, float], ...]
    is_search: bool


@cache
def images(source: Source) -> ImageData:
    spec = presets()[source.preset]
    kind: Any = "builtin" if source.folder is None else "folder"
    whole = data.load(spec.data.name, kind, source.folder, spec.data.image_size, 0.01, NullReporter())
    if source.folder is None:
        return whole
    generator = torch.Generator().manual_seed(derived_seed(0, "subset"))
    return _with_train(whole, torch.randperm(len(whole.train), generator=generator)[: source.num_train])


def held_out(whole: ImageData) -> ImageData:
    """A tenth of every class of the train split as the test split, the rest as the train split."""
    is_held = torch.zeros(len(whole.train), dtype=torch.bool)
    generator = torch.Generator().manual_seed(derived_seed(0, "held out"))
    for label in whole.train.labels.unique():
        members = (whole.train.labels == label).nonzero().flatten()
        is_held[members[torch.randperm(len(members), generator=generator)[: len(members) // 10]]] = True
    test = _part(whole.train, is_held)
    rest = _part(whole.train, ~is_held)
    return ImageData(whole.name, rest, test, whole.classes, whole.digest)


def _part(split: Split, chosen: Tensor) -> Split:
    return Split(split.images[chosen], split.labels[chosen], split.digest)


def _with_train(whole: ImageData, chosen: Tensor) -> ImageData:
    return ImageData(whole.name, _part(whole.train, chosen), whole.test, whole.classes, whole.digest)


def run(trial: Trial) -> dict[str, float]:
    """Train and evaluate on one thread; accuracies by measure, and the last pair precision of WCL."""
    torch.set_num_threads(1)
    whole = images(trial.source)
    dataset = held_out(whole) if trial.is_search else whole
    spec = _spec(trial)
    with tempfile.TemporaryDirectory() as folder:
        training = MemoryReporter()
        pretrain(spec, training, dataset=dataset, output_dir=Path(folder))
        path = Path(folder) / training.of("checkpoint")[-1]["path"]
        measured = MemoryReporter()
        evaluate(_evaluation(spec), measured, data=dataset, checkpoint_path=path)
    found = _measures(measured.of("evaluation"))
    precisions = [record["values"].get("weak/pair_precision") for record in training.of("metrics")]
    if values := [value for value in precisions if value is not None]:
        found["pair precision, last"] = values[-1]
    return found


def _spec(trial: Trial) -> PretrainSpec:
    fields = resolve_spec(presets()[trial.source.preset])
    fields |= {"method": trial.method, "seed": trial.seed, "threads": 1, "knn_every_epochs": 0}
    fields["loss"] |= dict(trial.loss)
    fields["checkpoints"] |= {"every_epochs": fields["epochs"], "first_epoch": False}
    spec = parse_spec("pretrain", fields)
    assert isinstance(spec, PretrainSpec)
    return spec


def _evaluation(spec: PretrainSpec) -> EvaluateSpec:
    """The same draws of labelled images for every method and seed."""
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


def _measures(records: Iterable[dict[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for record in records:
        params, value = record["params"], record["value"]
        if record["protocol"] == "knn":
            found["kNN k=20"] = value
        elif record["protocol"] == "linear" and record["metric"] == "top1":
            found["linear"] = value
        elif record["protocol"] == "few_labels":
            count = params["labels_per_class"]
            found[f"{count} label{'s' if count > 1 else ''}/class"] = value
    return found


def score(measured: dict[str, float]) -> float:
    return mean(measured[name] for name in MEASURES)


class Search:
    """Mean score over the search seeds of every setting tried, best first."""

    def __init__(self, source: Source, many: Callable[[list[Trial]], list[dict[str, float]]]) -> None:
        self._source, self._many = source, many
        self.tried: list[dict[str, Any]] = []

    def best(self, method: str, settings: list[dict[str, float]]) -> dict[str, float]:
        trials = [
            Trial(self._source, method, seed, tuple(setting.items()), is_search=True)
            for setting in settings
            for seed in SEARCH_SEEDS
        ]
        results = iter(self._many(trials))
        for chosen in settings:
            measured = [next(results) for _ in SEARCH_SEEDS]
            names = measured[0].keys()
            means = {name: mean(one[name] for one in measured) for name in names}
            self.tried.append({"method": method, "loss": chosen, "score": score(means), **means})
            print(f"{method} {chosen}: {score(means):.4f}", flush=True)
        of_method = [entry for entry in self.tried if entry["method"] == method]
        best: dict[str, float] = max(of_method, key=lambda entry: entry["score"])["loss"]
        return best


def paired(differences: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % t-interval."""
    half = student.ppf(0.975, len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    return mean(differences), float(half)


def table(simclr: list[dict[str, float]], wcl: list[dict[str, float]]) -> str:
    lines = ["| measure | SimCLR | WCL | WCL - SimCLR, points, 95 % interval |", "|---|---|---|---|"]
    for name in MEASURES:
        a, b = ([one[name] for one in many] for many in (simclr, wcl))
        difference, half = paired([100 * (y - x) for x, y in zip(a, b, strict=True)])
        lines.append(f"| {name} | {100 * mean(a):.2f} | {100 * mean(b):.2f} | {difference:+.2f} ± {half:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="an image folder; without it the built-in digits")
    parser.add_argument("--train-images", type=int, default=5000, help="of the folder's train split")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    source = Source(options.data, options.train_images)
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:

        def many(trials: list[Trial]) -> list[dict[str, float]]:
            return list(pool.map(run, trials))

        search = Search(source, many)
        simclr = search.best("simclr", [{"temperature": t} for t in TEMPERATURES])
        pairs = itertools.product(TEMPERATURES, TEMPERATURES)
        wcl = search.best("wcl", [{"temperature": t, "weak_temperature": w} for t, w in pairs])
        rest = [(beta, ramp) for beta, ramp in itertools.product(WEIGHTS, RAMPS) if (beta, ramp) != (1.0, 0.0)]
        wcl = search.best("wcl", [wcl | {"weak_weight": beta, "weak_ramp_fraction": ramp} for beta, ramp in rest])
        chosen = {"simclr": simclr, "wcl": wcl}
        trials = [
            Trial(source, method, seed, tuple(loss.items()), is_search=False)
            for method, loss in chosen.items()
            for seed in range(options.seeds)
        ]
        results = many(trials)
    halves = results[: options.seeds], results[options.seeds :]
    whole = images(source)
    text = (
        f"{table(*halves)}\n\nAccuracy in % on the test split after the last epoch; {options.seeds} seeds, paired. "
        f"Preset {source.preset} with these losses, chosen on a held-out tenth of train: {chosen}.\n"
    )
    print(text)
    facts = setting() | {
        "data": whole.name,
        "dataset_digest": whole.digest,
        "train_images": len(whole.train),
        "seeds": list(range(options.seeds)),
        "search_seeds": list(SEARCH_SEEDS),
        "chosen": chosen,
        "search": search.tried,
        "results": {"simclr": halves[0], "wcl": halves[1]},
    }
    save_results(f"methods-{'digits' if source.folder is None else 'images'}", facts, text)


if __name__ == "__main__":
    main()
