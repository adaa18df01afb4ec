"""How the weak labels group a run's probe: the moments that were reported, and what the groups are made of.

The images themselves are artifacts of the run, `probe.png` and what is known of them, `probe.json`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.models import Attempt, Grouping

PICTURE, FACTS = "probe.png", "probe.json"


class Probe(BaseModel):
    """The images, in the order of the picture's tiles and of labels.

    Attributes:
        indices: places in the train split.
        classes: true classes, null where nobody gave one.
        class_names: by class.
        tile: side of a tile in pixels.
        columns: tiles in a row of the picture.
    """

    model_config = ConfigDict(frozen=True)

    indices: list[int]
    classes: list[int | None]
    class_names: list[str]
    tile: int
    columns: int

    @property
    def known_classes(self) -> list[int] | None:
        """The true classes; None unless every image has one."""
        known = [label for label in self.classes if label is not None]
        return known if len(known) == len(self.classes) else None

    def name_of(self, label: int) -> str:
        """A class's name."""
        return self.class_names[label] if label < len(self.class_names) else str(label)


class Moment(NamedTuple):
    """When a grouping was reported."""

    epoch: int
    step: int
    attempt: int


def moments(session: Session, job_id: str) -> list[Moment]:
    """One an epoch, in order; what an attempt saw beyond the step where a later one resumed does not count."""
    attempts = session.execute(select(Attempt.number, Attempt.start_step).where(Attempt.job_id == job_id))
    starts = [(number, start) for number, start in attempts if start is not None]
    statement = select(Grouping.epoch, Grouping.step, Grouping.attempt).where(Grouping.job_id == job_id)
    seen = [Moment(*row) for row in session.execute(statement.order_by(Grouping.step, Grouping.attempt))]
    return [each for each in seen if all(each.step <= start for number, start in starts if number > each.attempt)]


def labels(session: Session, job_id: str, wanted: Sequence[Moment]) -> dict[Moment, list[int]]:
    """The weak labels of the probe's images at each of some moments."""
    statement = select(Grouping.epoch, Grouping.step, Grouping.attempt, Grouping.labels).where(
        Grouping.job_id == job_id, Grouping.epoch.in_([moment.epoch for moment in wanted])
    )
    found = {Moment(*row[:3]): row.labels for row in session.execute(statement)}
    return {moment: found[moment] for moment in wanted}


@dataclass(frozen=True)
class WeakGroup:
    """Images with the same weak label.

    Attributes:
        members: places in the probe.
        classes: how many members each true class has, the commonest first; None where classes are not known.
        precision: share of the pairs within the group that have one class; None without pairs or classes.
    """

    members: list[int]
    classes: dict[int, int] | None
    precision: float | None


def weak_groups(labels: Sequence[int], classes: Sequence[int] | None) -> list[WeakGroup]:
    """The groups, largest first, then by their first member.

    Args:
        labels: a weak label each image.
        classes: the true classes of the same images, where they are known.
    """
    members: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        members.setdefault(label, []).append(place)
    found = [_weak_group(places, classes) for places in members.values()]
    return sorted(found, key=lambda group: (-len(group.members), group.members[0]))


def _weak_group(places: list[int], classes: Sequence[int] | None) -> WeakGroup:
    if classes is None:
        return WeakGroup(places, None, None)
    counts = dict(Counter(classes[place] for place in places).most_common())
    num_pairs = len(places) * (len(places) - 1)
    alike = sum(count * (count - 1) for count in counts.values())
    return WeakGroup(places, counts, alike / num_pairs if num_pairs else None)


def pair_precision(groups: Sequence[WeakGroup]) -> float | None:
    """Mean over the images that have companions of the share of these with its own class."""
    measured = [(len(group.members), group.precision) for group in groups if group.precision is not None]
    count = sum(size for size, _ in measured)
    return sum(size * precision for size, precision in measured) / count if count else None


def chance(classes: Sequence[int] | None) -> float | None:
    """The pair precision of random pairs: the sum over classes of their squared share."""
    if not classes:
        return None
    return sum(count**2 for count in Counter(classes).values()) / len(classes) ** 2
