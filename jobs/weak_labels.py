"""Weak labels of a run: their quality while it trains, and the groups that they form in its monitor batch.

The images of the monitor batch are artifacts of the run: a picture, and its facts (`protocol.MonitorBatchFacts`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import curves
from jobs.models import Attempt, Grouping, Job, Series
from wcl_core.protocol import COMPONENTS, LARGEST_SHARE, PAIR_PRECISION, PAIR_PRECISION_CHANCE, VIEW_AGREEMENT

# Bounds of noisy weak labels [D], see docs/method.md.
MIN_PAIR_PRECISION = 0.3
MIN_VIEW_AGREEMENT = 0.1
MAX_LARGEST_SHARE = 0.2
# Neighbours are poor at the start of every run; the share of the epochs before the first judgement.
_UNJUDGED_SHARE = 0.2
_REPORTS = 5  # latest ones that a warning has to hold for: each is of one batch
_MEANING = (
    "The run is not broken, and its network may still be good; but these labels, which WCL adds, help little here."
)
ADVICE = (
    "Train the same spec with method simclr and compare: where we measured such labels, WCL was no better than SimCLR."
)


@dataclass(frozen=True)
class Quality:
    """The quality of a run's weak labels in its latest report; a value that was not reported is None.

    Attributes:
        components: of a batch.
        largest_share: share of the batch that is in its largest component.
        view_agreement: adjusted Rand index of the labels by the two views.
        pair_precision: share of the pairs with one weak label that are of one class; it needs true classes.
        pair_precision_chance: the same for random pairs.
        warning: why the labels are mostly noise, and what to do; None while they are not, or it is too early to say.
    """

    components: float | None
    largest_share: float | None
    view_agreement: float | None
    pair_precision: float | None
    pair_precision_chance: float | None
    warning: str | None


def quality(job: Job) -> Quality | None:
    """Return the quality of a job's weak labels; None if it has reported none."""
    latest = job.latest_metrics or {}
    if VIEW_AGREEMENT not in latest:
        return None
    progress = job.progress or {}
    is_early = (progress.get("epoch") or 0) < _UNJUDGED_SHARE * (progress.get("total_epochs") or 0)
    return Quality(
        components=latest.get(COMPONENTS),
        largest_share=latest.get(LARGEST_SHARE),
        view_agreement=latest.get(VIEW_AGREEMENT),
        pair_precision=latest.get(PAIR_PRECISION),
        pair_precision_chance=latest.get(PAIR_PRECISION_CHANCE),
        warning=None if is_early else _warning(latest),
    )


def lasting_quality(session: Session, job: Job) -> Quality | None:
    """Return the quality of a job's weak labels, with a warning only if each of the latest reports gives one."""
    latest = quality(job)
    if latest is None or latest.warning is None:
        return latest
    names = (LARGEST_SHARE, VIEW_AGREEMENT, PAIR_PRECISION, PAIR_PRECISION_CHANCE)
    series = select(Series).where(Series.job_id == job.id, Series.name.in_(names))
    reports = curves.newest(session, list(session.execute(series).scalars()), job.attempt, _REPORTS)
    return latest if all(map(_warning, reports)) else replace(latest, warning=None)


def _warning(latest: dict[str, float | None]) -> str | None:
    precision, chance = latest.get(PAIR_PRECISION), latest.get(PAIR_PRECISION_CHANCE)
    agreement, largest = latest.get(VIEW_AGREEMENT), latest.get(LARGEST_SHARE)
    if precision is not None:  # the true classes decide, where they are known
        if precision >= MIN_PAIR_PRECISION:
            return None
        beside = "" if chance is None else f" (chance {chance:.1%})"
        return f"Only {precision:.1%} of the pairs with one weak label are of one class{beside}. {_MEANING} {ADVICE}"
    if agreement is not None and agreement < MIN_VIEW_AGREEMENT:
        return f"The weak labels of the two views agree by {agreement:.1%} only. {_MEANING} {ADVICE}"
    if largest is not None and largest > MAX_LARGEST_SHARE:
        return f"{largest:.1%} of a batch has the same weak label. {_MEANING} {ADVICE}"
    return None


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
