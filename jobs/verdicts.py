"""Whether a training has learned: its kNN accuracy beside that of the untrained network and beside chance.

The curve of kNN begins before the first step, so each run has measured its own untrained network.  All intervals are
of 95 %, from the number of test images (Wilson; Newcombe for the difference).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.models import Dataset, DatasetVersion, Evaluation, Job, Point, Series
from wcl_core.config import held_out_count
from wcl_core.intervals import newcombe, wilson
from wcl_core.protocol import KNN_TOP1

_FEW = 1_000  # test images, below which the intervals hide most differences


@dataclass(frozen=True)
class Verdict:
    """What the kNN accuracy of a run shows.

    Attributes:
        headline: whether it is better than the untrained network, in a few words.
        accuracy, low, high: of the last measurement, with its interval.
        untrained: of the same network before its first step.
        chance: of always naming the largest class.
        difference, margin: accuracy minus untrained, and half of its interval.
        is_shown: whether the interval of the difference leaves out 0.
        num_images: of the test split.
    """

    headline: str
    accuracy: float
    low: float
    high: float
    untrained: float
    chance: float
    difference: float
    margin: float
    is_shown: bool
    num_images: int

    @property
    def sentence(self) -> str:
        """The headline with its numbers, for people."""
        return (
            f"{self.headline}. kNN accuracy {self.accuracy:.1%} ({self.low:.1%} to {self.high:.1%}), "
            f"untrained {self.untrained:.1%}, the largest class alone {self.chance:.1%}."
        )


# Measures that are shares of the test images; others are means of shares, or over draws.
_SHARES = ("top1", "recall_at_1", "recall_at_5")


def interval(evaluation: Evaluation) -> tuple[float, float] | None:
    """Return the 95 % interval of a measured share; None for other measures, and over several draws."""
    value, count = evaluation.value, evaluation.n
    if evaluation.metric not in _SHARES or evaluation.stderr is not None or value is None or not count:
        return None
    return wilson(value, count)


def chance(dataset: Dataset, evaluation: Evaluation) -> float | None:
    """Return the accuracy of always naming the largest class of the measured images; None where it is unknown."""
    counts = (dataset.class_counts or {}).get("test")
    if evaluation.metric != "top1" or evaluation.params.get("held_out_share") or not counts:
        return None
    return float(max(counts) / sum(counts))


def verdict(session: Session, job: Job) -> Verdict | None:
    """Return what a training has learned so far; None without two measurements, or without labels."""
    accuracy = (job.latest_metrics or {}).get(KNN_TOP1)
    if job.kind != "pretrain" or accuracy is None:
        return None
    before = untrained_accuracies(session, [job.id]).get(job.id)
    later = select(Point.step).join(Series, Series.id == Point.series_id)
    later = later.where(Series.job_id == job.id, Series.name == KNN_TOP1, Point.value.is_not(None), Point.step > 0)
    if before is None or session.execute(later.limit(1)).first() is None:
        return None
    counts = _test_counts(session, job)
    return None if counts is None else _judged(float(accuracy), before, counts)


def untrained_accuracies(session: Session, job_ids: Sequence[str]) -> dict[str, float]:
    """Return the kNN accuracy before the first step, by job; of the newest attempt that began there."""
    statement = (
        select(Series.job_id, Point.value)
        .join(Series, Series.id == Point.series_id)
        .where(Series.job_id.in_(job_ids), Series.name == KNN_TOP1, Point.step == 0, Point.value.is_not(None))
        .order_by(Point.attempt)
    )
    return {job_id: value for job_id, value in session.execute(statement) if value is not None}


def _test_counts(session: Session, job: Job) -> list[int] | None:
    """Return the measured images by class; None for a dataset without labels."""
    version = session.get(DatasetVersion, job.dataset_digest)
    by_split: dict[str, list[int]] = version.class_counts if version else {}
    if share := float(job.spec["data"].get("held_out_share", 0)):
        counts = [held_out_count(count, share) for count in by_split.get("train", ())]
    else:
        counts = list(by_split.get("test", ()))
    return counts if sum(counts) else None


def _judged(accuracy: float, untrained: float, counts: list[int]) -> Verdict:
    count = sum(counts)
    low, high = wilson(accuracy, count)
    chance, difference = max(counts) / count, accuracy - untrained
    below, above = newcombe(accuracy, untrained, count)
    margin, is_shown = (above - below) / 2, below > 0 or above < 0
    if difference:
        word = "Better" if difference > 0 else "Worse"
        points = f"{100 * abs(difference):.1f} ± {100 * margin:.1f} points"
        headline = f"{word} than the untrained network by {points}"
    else:
        headline = "As good as the untrained network"
    if not is_shown:
        few = f"; {count:,} test images are few" if count < _FEW else ""
        headline += f": not shown yet{few}"
    return Verdict(headline, accuracy, low, high, untrained, chance, difference, margin, is_shown, count)
