"""Evaluations as cards: one card per set of features and protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.web.format import number, words
from jobs.baselines import Beside, Source, beside, sources_of
from jobs.models import Dataset, Evaluation
from jobs.seed_groups import share_interval
from wcl_core.config import PROTOCOLS, measure_title, protocol_facts, result_title
from wcl_core.text import counted

MAX_SHOWN = 200
_PLACES: dict[str, int] = {name: place for place, name in enumerate(PROTOCOLS)}  # kNN first


@dataclass(frozen=True)
class Row:
    """One number; `setting` names the parameters that differ within the card.

    `beside` has the values that it must beat: chance, the raw pixels, the untrained network.
    """

    entry: Evaluation
    setting: str
    dataset: str
    classes: list[str]
    beside: Beside

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of a share."""
        return share_interval(self.entry)


@dataclass(frozen=True)
class Card:
    """The numbers of one protocol, version and seed on one set of features; `source` is None without a checkpoint."""

    rows: list[Row]
    source: Source | None

    @property
    def first(self) -> Evaluation:
        return self.rows[0].entry


def cards(session: Session, evaluations: Sequence[Evaluation]) -> list[Card]:
    """Return the newest evaluations as cards, those of the latest checkpoint first."""
    shown = evaluations[-MAX_SHOWN:]
    sources = sources_of(session, shown)
    datasets = _datasets(session, shown)
    around = beside(session, shown)

    def place(entry: Evaluation) -> tuple[Any, ...]:
        source = sources.get(entry.checkpoint_id or "")
        step = source.step if source else -1
        protocol = (_PLACES.get(entry.protocol, len(_PLACES)), entry.protocol, entry.protocol_version)
        return -step, entry.features_digest, entry.dataset_digest, protocol, entry.seed

    ordered = sorted(shown, key=lambda entry: (*place(entry), entry.id))
    return [
        Card(_rows(list(entries), datasets, around), sources.get(key[1]))
        for key, entries in groupby(ordered, key=lambda entry: (place(entry), entry.checkpoint_id or ""))
    ]


def _rows(entries: list[Evaluation], datasets: dict[str, Dataset], around: Mapping[str, Beside]) -> list[Row]:
    varying = _varying([entry.params for entry in entries])
    rows = []
    for entry in entries:
        dataset = datasets.get(entry.dataset_digest)
        setting = settings({name: value for name, value in entry.params.items() if name in varying})
        name = dataset.name if dataset else f"{entry.dataset_digest[:12]}… (not registered)"
        classes = dataset.classes if dataset else []
        rows.append(Row(entry, setting, name, classes, around.get(entry.id, Beside())))
    return rows


def _varying(params: Sequence[dict[str, Any]]) -> set[str]:
    """Return the names of the parameters that differ between entries, and of those that are always shown."""
    names = {name for each in params for name in each}
    return {name for name in names if name in _ALWAYS or any(each.get(name) != params[0].get(name) for each in params)}


def _datasets(session: Session, evaluations: Sequence[Evaluation]) -> dict[str, Dataset]:
    """Return the measured datasets that are still registered, by digest."""
    digests = {entry.dataset_digest for entry in evaluations}
    rows = session.execute(select(Dataset).where(Dataset.digest.in_(digests))).scalars() if digests else ()
    return {dataset.digest: dataset for dataset in rows}


# --- words -----------------------------------------------------------------------------------------------------------


def _labels(value: Any) -> str:
    return f"{counted(value, 'label')} per class"


_ALWAYS = ("labels_per_class", "share", "k", "held_out_share")
_PHRASES: dict[str, Callable[[Any], str]] = {
    "labels_per_class": _labels,
    "share": lambda value: f"{number(100 * value)}% of the labels",
    "classifier": words,
    "k": lambda value: f"k = {value}",
    "temperature": lambda value: f"T = {number(value)}",
    "epoch": lambda value: f"epoch: {value}",
    "held_out_share": lambda value: f"on {number(100 * value)}% of train, held out",
}


def settings(params: Mapping[str, Any]) -> str:
    """Format parameters as words."""
    phrases = [name for name in _PHRASES if name in params]
    others = sorted(set(params) - set(phrases))
    return ", ".join([*(_PHRASES[n](params[n]) for n in phrases), *(f"{words(n)} {value(params[n])}" for n in others)])


def value(setting: Any) -> str:
    """Format the value of a parameter."""
    if isinstance(setting, bool) or setting is None:
        return {True: "yes", False: "no", None: "none"}[setting]
    return number(setting) if isinstance(setting, int | float) else str(setting)


def class_name(label: int, classes: Sequence[str]) -> str:
    """Return the name of a class, or its label if it has none."""
    return classes[label] if 0 <= label < len(classes) else str(label)


FILTERS: dict[str, Callable[..., Any]] = {
    "metric_name": measure_title,
    "result_name": result_title,
    "protocol_name": lambda name: protocol_facts(name).title,
    "setting_value": value,
    "settings": settings,
    "class_name": class_name,
}
