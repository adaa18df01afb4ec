"""Weak labels of a run's monitor batch: when they were reported, and the groups that they form.

The images are artifacts of the run: a picture, and its facts (`protocol.MonitorBatchFacts`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.models import Attempt, Grouping


class Moment(NamedTuple):
    """A report of weak labels: its epoch, step and attempt."""

    epoch: int
    step: int
    attempt: int


def moments(session: Session, job_id: str) -> list[Moment]:
    """Return one report for each epoch, in order, without those after the step where a later attempt resumed."""
    attempts = session.execute(select(Attempt.number, Attempt.start_step).where(Attempt.job_id == job_id))
    starts = [(number, start) for number, start in attempts if start is not None]
    statement = select(Grouping.epoch, Grouping.step, Grouping.attempt).where(Grouping.job_id == job_id)
    reported = [Moment(*row) for row in session.execute(statement.order_by(Grouping.step, Grouping.attempt))]
    return [each for each in reported if all(each.step <= start for number, start in starts if number > each.attempt)]


def labels(session: Session, job_id: str, moments: Sequence[Moment]) -> dict[Moment, list[int]]:
    """Return the weak labels of the monitor batch at each of the moments."""
    statement = select(Grouping.epoch, Grouping.step, Grouping.attempt, Grouping.labels).where(
        Grouping.job_id == job_id, Grouping.epoch.in_([moment.epoch for moment in moments])
    )
    rows = {Moment(*row[:3]): row.labels for row in session.execute(statement)}
    return {moment: rows[moment] for moment in moments}


@dataclass(frozen=True)
class WeakGroup:
    """Images with the same weak label.

    Attributes:
        members: places in the monitor batch.
        classes: how many members each true class has, the most frequent first; None without known classes.
        precision: share of the pairs within the group that have one class; None without pairs or classes.
    """

    members: list[int]
    classes: dict[int, int] | None
    precision: float | None


def weak_groups(labels: Sequence[int], classes: Sequence[int] | None) -> list[WeakGroup]:
    """Return the groups, largest first, then by their first member.

    Args:
        labels: the weak label of each image.
        classes: the true classes of the same images, if known.
    """
    members: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        members.setdefault(label, []).append(place)
    groups = [_weak_group(places, classes) for places in members.values()]
    return sorted(groups, key=lambda group: (-len(group.members), group.members[0]))


def _weak_group(places: list[int], classes: Sequence[int] | None) -> WeakGroup:
    if classes is None:
        return WeakGroup(places, None, None)
    counts = dict(Counter(classes[place] for place in places).most_common())
    num_pairs = len(places) * (len(places) - 1)
    same_class = sum(count * (count - 1) for count in counts.values())
    return WeakGroup(places, counts, same_class / num_pairs if num_pairs else None)


def pair_precision(groups: Sequence[WeakGroup]) -> float | None:
    """Return the mean share of same-label images with an image's own class, over images that have same-label images."""
    measured = [(len(group.members), group.precision) for group in groups if group.precision is not None]
    count = sum(size for size, _ in measured)
    return sum(size * precision for size, precision in measured) / count if count else None


def chance(classes: Sequence[int] | None) -> float | None:
    """Return the pair precision of random pairs: the sum over classes of their squared share."""
    if not classes:
        return None
    return sum(count**2 for count in Counter(classes).values()) / len(classes) ** 2
