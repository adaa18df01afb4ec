"""Whether a training has learned: its kNN accuracy beside the untrained network, chance, and its twin.

The curve of kNN begins before the first step, so each run has measured its own untrained network.  All intervals are
of 95 %: from the number of test images (Wilson; Newcombe for the difference), or over seeds (`wcl_core.intervals`).
The twin of a WCL run is a SimCLR run with the same settings, and the other way round.  Without labels the view accuracy
takes the place of kNN: the share of images that are recognised by another view of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.models import Checkpoint, Dataset, DatasetVersion, Evaluation, Job, Point, Series
from jobs.seed_groups import SHARES, training_settings
from jobs.status import TERMINAL
from wcl_core.config import held_out_count, method_title, twin_of
from wcl_core.intervals import Difference, difference, newcombe, wilson
from wcl_core.metrics import metric_facts
from wcl_core.protocol import KNN_TOP1, VIEW_TOP1, VIEW_TOP1_CHANCE

_FEW = 1_000  # test images, below which the intervals hide most differences
_RECENT = 1_000  # jobs of the dataset, the newest ones, among which other seeds and the twin are searched
_MOST = 40  # of them that are compared


@dataclass(frozen=True)
class Contrast:
    """The accuracy of a configuration against something that it should beat, at a step that both have measured.

    Attributes:
        other: the other side, in words.
        difference: with its interval and the method of it.
        step: of the measurements; `is_last` says whether both sides measured nothing later.
        job_ids: of both sides.
        is_over: whether the job itself has ended.
        subject: the side that is better or worse, in words; empty for the job itself.
        metric: the name of the accuracy.
    """

    other: str
    difference: Difference
    step: int
    is_last: bool
    job_ids: list[str]
    is_over: bool
    subject: str = ""
    metric: str = KNN_TOP1

    @property
    def is_shown(self) -> bool:
        return self.difference.is_shown

    @property
    def sentence(self) -> str:
        """The finding with its interval and method, for people."""
        at = "" if self.is_last else f", at step {self.step:,}, the last one that both have measured"
        finding = headline(self.difference, self.other, self.is_over, self.subject)
        return f"{finding} ({self.difference.method}{at})."


@dataclass(frozen=True)
class Verdict:
    """What the kNN accuracy of a run shows, or without labels its view accuracy.

    Attributes:
        headline: whether it is better than the untrained network, in a few words.
        accuracy, low, high: of the last measurement, with its interval.
        untrained: of the same network before its first step.
        chance: of always naming the largest class; of the view accuracy, of naming any image.
        difference, margin: accuracy minus untrained, and half of its interval.
        is_shown: whether the interval of the difference leaves out 0.
        num_images: that were measured: of the test split, or without labels of the training.
        contrasts: over the seeds, and against the twin, where there are any.
        is_random: whether the training began with random weights; else `untrained` is the accuracy of others.
        metric: the name of the accuracy.
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
    contrasts: list[Contrast] = field(default_factory=list)
    is_random: bool = True
    metric: str = KNN_TOP1

    @property
    def title(self) -> str:
        """The accuracy for people."""
        return metric_facts(self.metric).title

    @property
    def about(self) -> str:
        """One sentence that explains the accuracy, without a full stop."""
        return metric_facts(self.metric).about

    @property
    def chance_title(self) -> str:
        """What has the accuracy `chance`, for people."""
        return "the largest class alone" if self.metric == KNN_TOP1 else "chance"

    @property
    def sentence(self) -> str:
        """The headline with its numbers, for people; also what the accuracy is, unless it is that of kNN."""
        before = "untrained" if self.is_random else "before the training"
        numbers = (
            f"{self.headline}. {self.title} {self.accuracy:.1%} ({self.low:.1%} to {self.high:.1%}), "
            f"{before} {self.untrained:.1%}, {self.chance_title} {self.chance:.1%}."
        )
        return numbers if self.metric == KNN_TOP1 else f"{numbers} {self.about}; it needs no labels."


def interval(evaluation: Evaluation) -> tuple[float, float] | None:
    """Return the 95 % interval of a measured share; None for other measures, and over several draws."""
    value, count = evaluation.value, evaluation.n
    if evaluation.metric not in SHARES or evaluation.stderr is not None or value is None or not count:
        return None
    return wilson(value, count)


def chance(dataset: Dataset, evaluation: Evaluation) -> float | None:
    """Return the accuracy of always naming the largest class of the measured images; None where it is unknown."""
    counts = (dataset.class_counts or {}).get("test")
    if evaluation.metric != "top1" or evaluation.params.get("held_out_share") or not counts:
        return None
    return float(max(counts) / sum(counts))


def verdict(session: Session, job: Job) -> Verdict | None:
    """Return what a training has learned so far; None without two measurements."""
    metric = accuracy_of([job])
    latest = job.latest_metrics or {}
    accuracy = latest.get(metric)
    if job.kind != "pretrain" or accuracy is None:
        return None
    before = untrained_accuracies(session, [job.id], metric).get(job.id)
    later = select(Point.step).join(Series, Series.id == Point.series_id)
    later = later.where(Series.job_id == job.id, Series.name == metric, Point.value.is_not(None), Point.step > 0)
    if before is None or session.execute(later.limit(1)).first() is None:
        return None
    is_over = job.status in TERMINAL
    first = session.get_one(Job, _firsts(session, [job.id])[job.id])
    is_random = first.spec.get("weights") is None
    if metric == VIEW_TOP1:
        images = [1] * _num_views(job)  # each is a class of its own
        return _judged(metric, float(accuracy), before, images, is_over, [], is_random) if images else None
    counts = _test_counts(session, job)
    if counts is None:
        return None
    contrasts = _contrasts(session, job, sum(counts), is_over)
    return _judged(metric, float(accuracy), before, counts, is_over, contrasts, is_random)


def accuracy_of(jobs: Sequence[Job]) -> str:
    """Return the name of the accuracy that all jobs measure: of kNN, unless all have the view accuracy instead."""
    latest = [job.latest_metrics or {} for job in jobs]
    without_labels = latest and all(each.get(KNN_TOP1) is None and VIEW_TOP1 in each for each in latest)
    return VIEW_TOP1 if without_labels else KNN_TOP1


def _num_views(job: Job) -> int:
    """Return among how many images a view is recognised; 0 where that is unknown."""
    share = (job.latest_metrics or {}).get(VIEW_TOP1_CHANCE)
    return round(1 / share) if share else 0


def untrained_accuracies(session: Session, job_ids: Sequence[str], metric: str = KNN_TOP1) -> dict[str, float]:
    """Return the accuracy before the first step, by job; of the newest attempt that began there.

    A job that goes on from a checkpoint of another one has the value of that one.
    """
    firsts = _firsts(session, job_ids)
    statement = (
        select(Series.job_id, Point.value)
        .join(Series, Series.id == Point.series_id)
        .where(Series.job_id.in_(set(firsts.values())), Series.name == metric)
        .where(Point.step == 0, Point.value.is_not(None))
        .order_by(Point.attempt)
    )
    values = {job_id: value for job_id, value in session.execute(statement) if value is not None}
    return {job_id: values[first] for job_id, first in firsts.items() if first in values}


def _firsts(session: Session, job_ids: Sequence[str]) -> dict[str, str]:
    """Return, by job, the one that its training began with: itself, or the first of those that it goes on from."""
    firsts = {job_id: job_id for job_id in job_ids}
    while True:
        statement = select(Job.id, Checkpoint.job_id).join(Checkpoint, Checkpoint.id == Job.resume_checkpoint_id)
        rows = session.execute(statement.where(Job.id.in_(set(firsts.values()))))
        earlier = {job_id: earlier_id for job_id, earlier_id in rows}  # noqa: C416 (mypy: the rows are no pairs)
        if not earlier:
            return firsts
        firsts = {job_id: earlier.get(first, first) for job_id, first in firsts.items()}


def _test_counts(session: Session, job: Job) -> list[int] | None:
    """Return the measured images by class; None for a dataset without labels."""
    version = session.get(DatasetVersion, job.dataset_digest)
    by_split: dict[str, list[int]] = version.class_counts if version else {}
    if share := float(job.spec["data"].get("held_out_share", 0)):
        counts = [held_out_count(count, share) for count in by_split.get("train", ())]
    else:
        counts = list(by_split.get("test", ()))
    return counts if sum(counts) else None


def _judged(
    metric: str,
    accuracy: float,
    untrained: float,
    counts: list[int],
    is_over: bool,
    contrasts: list[Contrast],
    is_random: bool,
) -> Verdict:
    count = sum(counts)
    low, high = wilson(accuracy, count)
    gap = Difference(accuracy - untrained, *newcombe(accuracy, untrained, count), "Newcombe")
    beginning = "the untrained network" if is_random else "the weights that it started from"
    finding = headline(gap, beginning, is_over)
    if not gap.is_shown and count < _FEW:
        finding += f"; {count:,} {'test ' if metric == KNN_TOP1 else ''}images are few"
    chance = max(counts) / count
    facts = (finding, accuracy, low, high, untrained, chance, gap.value, gap.margin, gap.is_shown, count)
    return Verdict(*facts, contrasts, is_random, metric)


def headline(gap: Difference, other: str, is_over: bool, subject: str = "") -> str:
    """Return whether a difference is shown, in a few words without a full stop; the first ones say whether.

    >>> headline(Difference(0.12, 0.1, 0.14, ""), "the untrained network", is_over=True)
    'Better than the untrained network by 12.0 ± 2.0 points'
    >>> headline(Difference(0.003, -0.025, 0.031, ""), "WCL", is_over=True, subject="SimCLR")
    'No difference shown: SimCLR 0.3 points ahead of WCL, interval ± 2.8'

    Args:
        gap: the accuracy of the subject minus that of the other side.
        other: the other side.
        is_over: whether no later measurement can show the difference.
        subject: the side that is better or worse; empty for the job on whose page this stands.
    """
    points, margin = f"{100 * abs(gap.value):.1f}", f"± {100 * gap.margin:.1f}"
    if gap.is_shown:
        finding = f"{'better' if gap.value > 0 else 'worse'} than {other} by {points} {margin} points"
        return f"{subject} is {finding}" if subject else f"{finding[:1].upper()}{finding[1:]}"
    if gap.value:
        ahead, behind = ("ahead of", "behind") if subject else ("above", "below")
        distance = f"{points} points {ahead if gap.value > 0 else behind} {other}"
    else:
        distance = f"as good as {other}"
    finding = f"{subject} {distance}" if subject else distance
    return f"No difference shown{'' if is_over else ' yet'}: {finding}, interval {margin}"


# --- over seeds, and against the twin --------------------------------------------------------------------------------


def _contrasts(session: Session, job: Job, num_images: int, is_over: bool) -> list[Contrast]:
    """Return how a configuration compares over its seeds with its untrained networks, and with its twin."""
    own, twin = sides(session, job)
    curves = _curves(session, [each.id for each in (*own.values(), *twin.values())])
    steps = {step for step in curves[job.id] if step > 0}
    if not steps:
        return []
    contrasts = []
    if len(own) > 1:
        trained, untrained = _at(own, curves, max(steps)), _at(own, curves, 0)
        is_last = max(max(curves[each.id], default=0) for each in own.values()) == max(steps)
        gap = difference(trained, untrained, None)
        if gap is not None:
            facts = (gap, max(steps), is_last, [own[seed].id for seed in trained], is_over)
            contrasts.append(Contrast("the untrained network over all seeds", *facts))
    common = steps & {step for each in twin.values() for step in curves[each.id]}
    if common:
        step = max(common)
        ours, others = _at(own, curves, step), _at(twin, curves, step)
        gap = difference(ours, others, num_images)
        if gap is not None:
            is_last = step == max(max(curves[each.id], default=0) for each in (*own.values(), *twin.values()))
            ids = [own[seed].id for seed in ours] + [twin[seed].id for seed in others]
            title = method_title(next(iter(twin.values())).spec["method"])
            contrasts.append(Contrast(f"its {title} twin", gap, step, is_last, ids, is_over))
    return contrasts


def best_of(session: Session, configurations: Sequence[dict[int, Job]], names: Sequence[str]) -> Contrast | None:
    """Return the best configuration by kNN accuracy against the second one; None where nothing can be compared.

    Without labels the view accuracy takes its place. All are compared at the last step that each of them has measured.

    Args:
        configurations: the jobs of each, by seed.
        names: of the configurations.
    """
    every = [job for each in configurations for job in each.values()]
    metric = accuracy_of(every)
    curves = _curves(session, [job.id for job in every], metric)
    steps = [{step for job in each.values() for step in curves[job.id] if step > 0} for each in configurations]
    common = set.intersection(*steps)
    if not common:
        return None
    step = max(common)
    accuracies = [_at(each, curves, step) for each in configurations]
    means = [sum(values.values()) / len(values) for values in accuracies]
    first, second = sorted(range(len(means)), key=lambda place: -means[place])[:2]
    count = sum(_test_counts(session, every[0]) or []) if metric == KNN_TOP1 else _num_views(every[0])
    gap = difference(accuracies[first], accuracies[second], count or None)
    if gap is None:
        return None
    if gap.value < 0:  # over the seeds that both have, the second one is better
        first, second, gap = second, first, gap.reversed
    is_over = all(job.status in TERMINAL for job in every)
    facts = (gap, step, step == max(map(max, steps)), [job.id for job in every], is_over)
    return Contrast(names[second], *facts, subject=names[first], metric=metric)


def sides(session: Session, job: Job) -> tuple[dict[int, Job], dict[int, Job]]:
    """Return the jobs with the settings of a job, and those of its twin, each by seed; the newest one of each seed."""
    recent = select(Job.id).where(Job.dataset_name == job.dataset_name).order_by(Job.id.desc()).limit(_RECENT)
    method = str(job.spec["method"])
    statement = (
        select(Job)
        .where(
            Job.id.in_(select(recent.subquery().c.id)),
            Job.kind == "pretrain",
            Job.dataset_digest == job.dataset_digest,
            Job.spec["method"].as_string().in_((method, twin_of(method))),
            Job.spec["epochs"].as_integer() == job.spec["epochs"],
            Job.spec["backbone"]["name"].as_string() == job.spec["backbone"]["name"],
        )
        .order_by(Job.id.desc())
        .limit(_MOST)
    )
    settings = _beside_method(job)
    alike = [each for each in session.execute(statement).scalars() if _beside_method(each) == settings][::-1]
    own = {int(each.spec["seed"]): each for each in alike if each.spec["method"] == method}
    twin = {int(each.spec["seed"]): each for each in alike if each.spec["method"] != method}
    return own | {int(job.spec["seed"]): job}, twin


def _beside_method(job: Job) -> dict[str, object]:
    return training_settings(job.spec) | {"method": None, "method_options": None}


def _curves(session: Session, job_ids: Sequence[str], metric: str = KNN_TOP1) -> dict[str, dict[int, float]]:
    """Return the curves of an accuracy by job and step; of several attempts, the newest one counts."""
    statement = (
        select(Series.job_id, Point.step, Point.value)
        .join(Series, Series.id == Point.series_id)
        .where(Series.job_id.in_(job_ids), Series.name == metric, Point.value.is_not(None))
        .order_by(Point.attempt)
    )
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for job_id, step, value in session.execute(statement):
        curves[job_id][step] = float(value or 0.0)
    return curves


def _at(side: dict[int, Job], curves: dict[str, dict[int, float]], step: int) -> dict[int, float]:
    """Return the accuracies at a step by seed, of the jobs that have measured it."""
    return {seed: curves[job.id][step] for seed, job in sorted(side.items()) if step in curves[job.id]}
