"""The search for hyper-parameters on held-out images, with equal numbers of trials for both methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from .trials import PRIMARY, Measured, Settings, Source, Trial

METHODS = ("simclr", "wcl")


@dataclass(frozen=True)
class Stage:
    """Changes that are tried one at a time on top of the best settings so far, by method.

    Attributes:
        name: the subject of the changes.
        options: the changes of each method, in equal numbers.
        is_shared: whether options and choice are the same for both methods, by the mean of their scores.  Settings that
            affect initialisation, batches or views must agree, or the seeds would not be paired.
    """

    name: str
    options: dict[str, list[Settings]]
    is_shared: bool = False

    def __post_init__(self) -> None:
        if len({len(options) for options in self.options.values()}) != 1 or set(self.options) != set(METHODS):
            raise ValueError(f"stage {self.name}: the methods need equal numbers of options")
        if self.is_shared and any(options != self.options[METHODS[0]] for options in self.options.values()):
            raise ValueError(f"stage {self.name}: the options are shared, but differ between the methods")

    @staticmethod
    def shared(name: str, options: list[Settings]) -> Stage:
        return Stage(name, dict.fromkeys(METHODS, options), is_shared=True)


@dataclass
class Search:
    """The best settings of each method, stage by stage.

    Attributes:
        source: the source of the images.
        seeds: the seeds of the runs; seed number i holds out fold i, so that no choice depends on one set of images.
        measure: runs trials and returns their measures.
        best: the settings at the start; later the chosen ones.
        tried: all settings with their means over the seeds, in the order of the trials.
    """

    source: Source
    seeds: tuple[int, ...]
    measure: Callable[[list[Trial]], list[Measured]]
    best: dict[str, Settings]
    tried: list[dict[str, Any]] = field(default_factory=list)

    def run(self, stages: list[Stage]) -> dict[str, Settings]:
        """Run the stages and return the chosen settings by method."""
        for stage in stages:
            self._advance(stage)
        return self.best

    def _advance(self, stage: Stage) -> None:
        """Run one stage; the best settings so far take part at no cost, because their trials are finished."""
        candidates = {
            method: [self.best[method], *(self.best[method] | option for option in stage.options[method])]
            for method in METHODS
        }
        scores = {method: self._scores(stage, method, candidates[method]) for method in METHODS}
        if stage.is_shared:
            both = [mean(pair) for pair in zip(*scores.values(), strict=True)]
            scores = dict.fromkeys(METHODS, both)
        for method in METHODS:
            self.best[method] = candidates[method][scores[method].index(max(scores[method]))]
            print(f"{stage.name}, {method}: {self.best[method]}", flush=True)

    def _scores(self, stage: Stage, method: str, candidates: list[Settings]) -> list[float]:
        trials = [
            Trial(self.source, method, seed, tuple(settings.items()), fold)
            for settings in candidates
            for fold, seed in enumerate(self.seeds)
        ]
        results = iter(self.measure(trials))
        scores = []
        for settings in candidates:
            measured = [next(results) for _ in self.seeds]
            means = {name: mean(one[name] for one in measured) for name in measured[0]}
            scores.append(score(means))
            self._note({"stage": stage.name, "method": method, "settings": settings, "score": scores[-1], **means})
        return scores

    def _note(self, entry: dict[str, Any]) -> None:
        if not any((entry["method"], entry["settings"]) == (old["method"], old["settings"]) for old in self.tried):
            self.tried.append(entry)
            print(", ".join(f"{k} {v:.4f}" if isinstance(v, float) else str(v) for k, v in entry.items()), flush=True)


def score(measured: Measured) -> float:
    """Return the score that settings are chosen by: the mean of the primary measures."""
    return mean(measured[name] for name in PRIMARY)
