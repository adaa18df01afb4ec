"""The demo's table of four sets of features under the same protocols, and the noise of their differences.

No network and no files here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wcl_client.responses import Evaluation
from wcl_client.terminal import Rows
from wcl_core.text import counted


@dataclass(frozen=True)
class Column:
    """A column of the table: one protocol with its parameter."""

    title: str
    protocol: str
    param: str | None = None
    param_value: int | None = None

    def is_about(self, entry: Evaluation) -> bool:
        return entry["protocol"] == self.protocol and (
            self.param is None or entry["params"].get(self.param) == self.param_value
        )


def columns(rows: Iterable[Sequence[Evaluation]]) -> list[Column]:
    """Return the columns of what was measured; the numbers of labels and neighbours fit the smallest class."""
    entries = [entry for evaluations in rows for entry in evaluations]
    labels = _values(entries, "few_labels", "labels_per_class")
    return [
        *(Column(f"{counted(n, 'label')} per class", "few_labels", "labels_per_class", n) for n in labels),
        Column("linear, all labels", "linear"),
        *(Column(f"kNN, k = {k}", "knn", "k", k) for k in _values(entries, "knn", "k")),
    ]


def _values(entries: Iterable[Evaluation], protocol: str, param: str) -> list[int]:
    return sorted({entry["params"][param] for entry in entries if entry["protocol"] == protocol})


@dataclass(frozen=True)
class Score:
    """A top-1 accuracy in 0..1 and its standard error, if it is known."""

    value: float
    stderr: float | None

    def __str__(self) -> str:
        return f"{self.value:.1%}" + (f" ± {self.stderr:.1%}" if self.stderr is not None else "")


def score(evaluations: Sequence[Evaluation], column: Column) -> Score | None:
    """Return the measured number of a column; None if there is none.

    A few-label score has the standard error over its draws. A score of one split has only a binomial standard error,
    which is computed here if the evaluation has its number of images.
    """
    for entry in evaluations:
        value = entry["value"]
        if column.is_about(entry) and entry["metric"] == "top1" and value is not None:
            stderr, n = entry.get("stderr"), entry.get("n")
            if stderr is None and n and column.protocol != "few_labels":
                stderr = math.sqrt(max(value * (1 - value), 0) / n)
            return Score(value, stderr)
    return None


def table(rows: Mapping[str, Sequence[Evaluation]]) -> Rows:
    """Return a table of top-1 accuracy ± standard error: a row for each set of features, a column for each protocol."""
    shown = columns(rows.values())
    result = Rows("features", *(column.title for column in shown), title="Top-1 accuracy ± standard error")
    for name, evaluations in rows.items():
        result.add(name, *(str(score(evaluations, column) or "–") for column in shown))
    return result


def differences(ours: Sequence[Evaluation], other: Sequence[Evaluation]) -> list[str]:
    """Return for each column the difference of `ours` to `other`, and whether it exceeds twice the standard error."""
    lines = []
    for column in columns((ours, other)):
        a, b = score(ours, column), score(other, column)
        if a is None or b is None:
            continue
        gap = f"{column.title}: {100 * (a.value - b.value):+.1f} points"
        if a.stderr is None or b.stderr is None:
            lines.append(f"{gap}, the standard error is unknown")
            continue
        noise = 2 * math.hypot(a.stderr, b.stderr)
        if abs(a.value - b.value) <= noise:
            lines.append(f"{gap}, within noise (± {100 * noise:.1f})")
        else:
            lines.append(f"{gap}, {'better' if a.value > b.value else 'worse'} beyond noise (± {100 * noise:.1f})")
    return lines
