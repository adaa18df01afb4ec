"""Benchmark of WCL against SimCLR on small data: equal searches on held-out train images, then paired seeds.

    python benchmarks/methods.py [--seeds 5] [--search-seeds 2] [--workers 2]
    python benchmarks/methods.py --data FOLDER [--per-class 500] [--set epochs=20 ...]

The test split is read once, at the end. `measure/` has the parts: trials.py, search.py, pairs.py. Finished trials are
kept in runs/methods-NAME.jsonl, so that an interrupted benchmark continues; delete the file to start again.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml
from measure.pairs import budget_line, comparison_table, described, precision_line, search_table
from measure.report import save_results, setting
from measure.search import METHODS, Search, Stage
from measure.trials import Bench, Measured, Settings, Source, Trial, dataset

from wcl_core.config import resolve_spec
from wcl_core.data.folder import list_files
from wcl_core.evaluation import few_labels, knn, linear

RUNS = Path(__file__).parents[1] / "runs"
FIRST_SEARCH_SEED = 1000  # the seeds of the comparison start at 0
START: Settings = {
    "loss.temperature": 0.1,
    "loss.weak_temperature": 0.1,
    "loss.weak_weight": 1.0,
    "loss.weak_ramp_fraction": 0.0,
    "augmentation.scale_min": 0.3,
    "optimizer.learning_rate": 0.06,
    "optimizer.weight_decay": 5e-4,
}


def temperatures(both: list[tuple[float, float]], one: list[float]) -> Stage:
    """Return pairs of WCL's two temperatures; SimCLR's one temperature gets the same number of trials."""
    wcl = [{"loss.temperature": t, "loss.weak_temperature": w} for t, w in both]
    return Stage("temperatures", {"wcl": wcl, "simclr": [{"loss.temperature": t} for t in one]})


def views_and_rate() -> Stage:
    """Return a stage with weaker crops, which raise the pair precision, and a higher learning rate."""
    return Stage.shared("views and rate", [{"augmentation.scale_min": 0.5}, {"optimizer.learning_rate": 0.12}])


def weak_loss() -> Stage:
    """Return a stage with weights and ramps of the weak-label loss; for SimCLR two temperatures in between."""
    pairs = [(0.5, 0.2), (1.0, 0.2)]
    wcl = [{"loss.weak_weight": beta, "loss.weak_ramp_fraction": ramp} for beta, ramp in pairs]
    return Stage("weak loss; temperature", {"wcl": wcl, "simclr": [{"loss.temperature": t} for t in (0.17, 0.24)]})


def higher_temperatures() -> Stage:
    """Return temperatures above the usual ones, for both methods."""
    wcl = [{"loss.temperature": 0.4, "loss.weak_temperature": w} for w in (0.2, 0.4)]
    return Stage("higher temperatures", {"wcl": wcl, "simclr": [{"loss.temperature": t} for t in (0.4, 0.56)]})


def labels_use(change: Settings) -> Stage:
    """Return a stage with another use of the weak labels; for SimCLR one more temperature."""
    return Stage("use of the labels; temperature", {"wcl": [change], "simclr": [{"loss.temperature": 0.48}]})


def stages(source: Source) -> list[Stage]:
    """Return the stages of the search.

    On digits the weak labels are precise from the start, so that same-label images can leave the negatives; on other
    data the labels must become precise first.
    """
    if source.folder is None:
        same_label = labels_use({"loss.exclude_mates": True})
        usual = temperatures([(0.1, 0.2), (0.2, 0.1), (0.2, 0.2)], [0.14, 0.2, 0.28])
        return [usual, views_and_rate(), weak_loss(), higher_temperatures(), same_label]
    return [views_and_rate(), temperatures([(0.2, 0.1), (0.2, 0.2), (0.4, 0.2)], [0.2, 0.28, 0.4])]


def main() -> None:
    options = _options()
    source = Source(options.data, options.per_class if options.data else None)
    start = START | dict(map(_assignment, options.set))
    search_seeds = tuple(range(FIRST_SEARCH_SEED, FIRST_SEARCH_SEED + options.search_seeds))
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        bench = Bench(pool, RUNS / f"methods-{source.name}.jsonl")
        search = Search(source, search_seeds, bench.measure, {method: dict(start) for method in METHODS})
        chosen = search.run(stages(source))
        trials = {
            method: [Trial(source, method, seed, tuple(chosen[method].items()), None) for seed in range(options.seeds)]
            for method in METHODS
        }
        bench.measure([trial for pair in zip(*trials.values(), strict=True) for trial in pair])
        results = {method: bench.measure(trials[method]) for method in METHODS}
    _save(source, trials, results, search)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="image folder; default: the built-in digits")
    parser.add_argument("--per-class", type=int, default=500, help="number of train images of each class of the folder")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="a start setting of the search"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--search-seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    return parser.parse_args()


def _assignment(text: str) -> tuple[str, Any]:
    path, _, value = text.partition("=")
    return path, yaml.safe_load(value)


def _save(source: Source, trials: dict[str, list[Trial]], results: dict[str, list[Measured]], search: Search) -> None:
    data = dataset(source, None)
    facts = setting() | {
        "data": source.name,
        "encoding": _encoding(source),
        "dataset_digest": data.digest,
        "train_digest": data.train.digest,
        "test_digest": data.test.digest,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "epoch_rule": "last",
        "protocol_versions": {"knn": knn.VERSION, "linear": linear.VERSION, "few_labels": few_labels.VERSION},
        "seeds": [trial.seed for trial in trials["wcl"]],
        "search_seeds": list(search.seeds),
        "chosen": search.best,
        "specs": {method: resolve_spec(trials[method][0].spec()) for method in METHODS},
        "search": search.tried,
        "results": results,
    }
    text = _text(facts)
    print(text)
    save_results(f"methods-{source.name}", facts, text)


def _text(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} v{version}" for name, version in facts["protocol_versions"].items())
    chosen = "\n".join(f"- {method}: {described(method, settings)}" for method, settings in facts["chosen"].items())
    parts = (
        comparison_table(facts["results"]["simclr"], facts["results"]["wcl"]),
        f"Top-1 in % after the last epoch; {len(facts['seeds'])} paired seeds: same initialisation, batches and views.",
        precision_line(facts["results"]["wcl"]),
        f"Data: {facts['data']} ({facts['encoding']}), {facts['train_images']} train and {facts['test_images']} test "
        f"images, digest {facts['dataset_digest'][:12]}. Protocols: {versions}.",
        f"{budget_line(facts['search'], len(facts['search_seeds']))} Chosen:\n\n{chosen}",
        search_table(facts["search"]),
    )
    return "\n\n".join(parts)


def _encoding(source: Source) -> str:
    if source.folder is None:
        return "8x8 pixels of 17 grey levels"
    return " and ".join(sorted({Path(path).suffix for path, _ in list_files(source.name, source.folder).train}))


if __name__ == "__main__":
    main()
