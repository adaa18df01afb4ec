"""Whether a training has learned: its accuracies beside the untrained network, chance, and its twin.

The curve of kNN begins before the first step, so each run has measured its own untrained network.  Each evaluation
whose baseline is measured adds its main measure, one for each of its settings.  All of them are compared, and the
headline names how many; a difference is shown if it is after Holm's correction for their number.  A job that goes on
shows its numbers without a finding, since measurements every few epochs would cross the border of the interval again
and again.  All intervals are of 95 %: over the test images, in pairs where it is stored which ones were right
(`jobs.baselines`), or over seeds.
With one seed, two trainings are compared in pairs too, once both have a kNN evaluation at the compared step.
Against the twin, and in a comparison, every main measure counts that both sides have, by the same rule: all of them are
in the headline, after Holm's correction for their number.
The twin of a WCL run is a SimCLR run with the same settings, and the other way round.  Without labels the view accuracy
takes the place of kNN: the share of images that are recognised by another view of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.baselines import Beside, beside, difference_of_one_seed, label
from jobs.configurations import Configuration, Measure, measured
from jobs.curves import metrics
from jobs.models import Checkpoint, DatasetVersion, Evaluation, Job, JobEvaluation, Point, Series
from jobs.planned_evaluations import BEST_ORIGIN
from jobs.seed_groups import Result, training_settings
from jobs.status import TERMINAL, Status
from wcl_core.config import held_out_count, method_title, protocol_facts, protocol_place, twin_of
from wcl_core.intervals import Difference, difference, holm, newcombe, one_pair, paired, wilson
from wcl_core.metrics import metric_facts
from wcl_core.per_image import Pairs
from wcl_core.protocol import GAINED, KNN_TOP1, LOST, VIEW_TOP1, VIEW_TOP1_CHANCE, VIEW_TOP1_PIXELS
from wcl_core.text import counted

_FEW = 1_000  # test images, below which the intervals hide most differences
_RECENT = 1_000  # jobs of the dataset, the newest ones, among which other seeds and the twin are searched
_MOST = 40  # of them that are compared
_SPREADS = ("repr/rankme", "repr/uniformity")


Finding = Literal["better", "worse", "mixed", "unclear", "open"]  # open: the job goes on


def all_shown(gaps: Sequence[Difference]) -> list[bool]:
    """Return which differences of a verdict are shown: the interval of a single one, Holm's correction for several."""
    return [gaps[0].is_shown] if len(gaps) == 1 else holm([each.p_value for each in gaps])


def _finding(gap: Difference, is_over: bool, *, is_shown: bool) -> Finding:
    if not is_over:
        return "open"
    return "unclear" if not is_shown else "better" if gap.value > 0 else "worse"


def _together(findings: Sequence[Finding]) -> Finding:
    shown = {*findings} - {"unclear"}
    return "mixed" if len(shown) > 1 else shown.pop() if shown else "unclear"


def _phrase(title: str, gap: Difference, epoch: int | None = None) -> str:
    """Return a measure with its difference, for people."""
    at = "" if epoch is None else f", epoch {epoch:,}"
    margin = "" if gap.is_open else f" ± {100 * gap.margin:.1f}"
    return f"{_inside(title)}{at} {100 * gap.value:+.1f}{margin} points"


def _over_measures(
    phrases: Sequence[tuple[str, Finding]], other: str, subject: str = "", *, numbers: bool = True
) -> str:
    """Return in one sentence what several measures show, without a full stop.

    Args:
        phrases: each measure with its difference, and what it shows.
        other: the other side.
        subject: the side that is better or worse; empty for the job on whose page this stands.
        numbers: whether the phrases stand in it.
    """
    directions: tuple[Finding, ...] = ("better", "worse", "unclear")
    parts: list[str] = []
    for finding in directions:
        if not (own := [phrase for phrase, each in phrases if each == finding]):
            continue
        count = f"{len(own)}" if parts else f"{len(own)} of {len(phrases)} measures"
        values = f" ({', '.join(own)})" if numbers else ""
        if finding == "unclear":
            to = "" if parts else f" {f'of {subject} ' if subject else ''}to {other}"
            parts.append(f"no difference{to} shown in {count}{values}")
        else:
            than = "" if parts else f" than {other}"
            parts.append(f"{f'{subject} is ' if subject and not parts else ''}{finding}{than} in {count}{values}")
    text = ", ".join(parts)
    return text if subject and not text.startswith("no ") else f"{text[:1].upper()}{text[1:]}"


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
        other_step: that of the other side, where the two have measured no step in common.
        further: the other main measures that both sides have, each with its title and difference.
    """

    other: str
    difference: Difference
    step: int
    is_last: bool
    job_ids: list[str]
    is_over: bool
    subject: str = ""
    metric: str = KNN_TOP1
    other_step: int | None = None
    further: Sequence[tuple[str, Difference]] = ()

    @property
    def measures(self) -> list[tuple[str, Difference, Finding]]:
        """Each measure in words with its difference, and what it shows after the correction for their number."""
        every = [(self.title, self.difference), *self.further]
        shown = all_shown([gap for _, gap in every])
        return [
            (title, gap, _finding(gap, self.is_over, is_shown=is_shown))
            for (title, gap), is_shown in zip(every, shown, strict=True)
        ]

    @property
    def finding(self) -> Finding:
        """Whether all shown differences are in one direction, and in which."""
        return _together([finding for *_, finding in self.measures])

    @property
    def is_shown(self) -> bool:
        """Whether all jobs have ended and a difference is shown."""
        return self.finding in ("better", "worse", "mixed")

    @property
    def reversed(self) -> Contrast:
        """The same as seen from the other side, if both sides have names."""
        other_step = self.step if self.other_step is not None else None
        return replace(
            self,
            other=self.subject,
            subject=self.other,
            difference=self.difference.reversed,
            step=self.step if self.other_step is None else self.other_step,
            other_step=other_step,
            further=[(title, gap.reversed) for title, gap in self.further],
        )

    @property
    def title(self) -> str:
        """The accuracy for people."""
        return metric_facts(self.metric).title

    @property
    def sentence(self) -> str:
        """The finding with its interval and method, for people."""
        at = "" if self.is_last else f", at step {self.step:,}, the last one that both have measured"
        if self.other_step is not None:
            at = f", each at its last measured step: {self.step:,} against {self.other_step:,}"
        if not self.further:
            finding = headline(self.difference, self.other, self.is_over, self.subject)
            return f"{finding} ({self.difference.method}{at})."
        phrases = [(_phrase(title, gap), finding) for title, gap, finding in self.measures]
        if self.is_over:
            text = _over_measures(phrases, self.other, self.subject)
        else:
            text = f"So far, {f'{self.subject} ' if self.subject else ''}against {self.other}: "
            text += ", ".join(phrase for phrase, _ in phrases)
        methods = "; ".join(dict.fromkeys(gap.method for _, gap, _ in self.measures))
        of_first = f"{_inside(self.title)}{at}; " if at else ""
        return f"{text} ({of_first}{methods}; Holm's correction for {len(phrases)} comparisons)."


@dataclass(frozen=True)
class Spread:
    """How widely the features of the monitor batch spread: a monitor of a training beside its untrained network."""

    metric: str
    value: float
    untrained: float

    @property
    def title(self) -> str:
        """The monitor for people."""
        return metric_facts(self.metric).title

    @property
    def text(self) -> str:
        """Both values, for people."""
        return f"{self.title} {self.value:.3g}, untrained {self.untrained:.3g}"


@dataclass(frozen=True)
class Gain:
    """One accuracy of a training against the same accuracy of its beginning.

    Attributes:
        title: of the measure, for people.
        metric: the name of the accuracy in the curves, or protocol and metric of an evaluation.
        accuracy, untrained: of the network, and of its beginning.
        difference: with its interval and the method of it.
        num_images: that were measured.
        epoch: of the measured checkpoint, if it is not the last one.
        evaluation_id: None for an accuracy of the curves.
        is_over: whether the job has ended.
        is_shown: whether it has, and the difference is shown after Holm's correction for all measures of the verdict.
    """

    title: str
    metric: str
    accuracy: float
    untrained: float
    difference: Difference
    num_images: int
    epoch: int | None = None
    evaluation_id: str | None = None
    is_over: bool = True
    is_shown: bool = False

    @property
    def finding(self) -> Finding:
        return _finding(self.difference, self.is_over, is_shown=self.is_shown)

    @property
    def about(self) -> str:
        """One sentence that explains the measure, without a full stop; "" where the title says it all."""
        return metric_facts(self.metric).about or protocol_facts(self.metric.partition("/")[0]).about

    @property
    def is_paired(self) -> bool:
        return self.difference.method.startswith("paired")

    @property
    def phrase(self) -> str:
        """The measure with its difference, for people."""
        return _phrase(self.title, self.difference, self.epoch)


@dataclass(frozen=True)
class Verdict:
    """What the accuracies of a run show: each measure with a baseline, and one of them in numbers.

    Attributes:
        headline: which measures are shown to be better than the untrained network, and by how much, in a sentence.
        summary: the same without numbers, if there are several measures.
        gains: all measures that are compared, the one in numbers first.
        accuracy, low, high: of the last measurement, with its interval; of kNN, or without labels the view accuracy.
        untrained: of the same network before its first step.
        chance: of always naming the largest class; of the view accuracy, of naming any image; None if unknown.
        difference, margin: accuracy minus untrained, and half of its interval.
        is_shown: whether the difference of this measure is shown.
        num_images: that were measured: of the test split, or without labels of the training.
        contrasts: over the seeds, and against the twin, where there are any.
        is_random: whether the training began with random weights; else `untrained` is the accuracy of others.
        metric: the name of the accuracy.
        pixels: the view accuracy of raw pixels; None if it is not measured.
        is_held_out: whether the training has not seen the images of the view accuracy.
        spread: of the features, beside the view accuracy.
    """

    headline: str
    summary: str
    gains: list[Gain]
    low: float
    high: float
    chance: float | None
    contrasts: list[Contrast] = field(default_factory=list)
    is_random: bool = True
    pixels: float | None = None
    is_held_out: bool = False
    spread: list[Spread] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        return self.gains[0].accuracy

    @property
    def untrained(self) -> float:
        return self.gains[0].untrained

    @property
    def difference(self) -> float:
        return self.gains[0].difference.value

    @property
    def margin(self) -> float:
        return self.gains[0].difference.margin

    @property
    def is_shown(self) -> bool:
        return self.gains[0].is_shown

    @property
    def num_images(self) -> int:
        return self.gains[0].num_images

    @property
    def metric(self) -> str:
        return self.gains[0].metric

    @property
    def finding(self) -> Finding:
        """Whether all shown differences are in one direction, and in which."""
        return _together([each.finding for each in self.gains])

    @property
    def findings(self) -> dict[str, Finding]:
        """What each evaluation of a job that has ended shows, after the correction, by its id."""
        return {each.evaluation_id: each.finding for each in self.gains if each.evaluation_id and each.is_over}

    @property
    def outlook(self) -> str:
        """When the finding comes, as a sentence; "" once the job has ended."""
        if self.gains[0].is_over:
            return ""
        return "The job has not ended: these numbers still change, and the finding comes at its end."

    @property
    def title(self) -> str:
        """The accuracy for people."""
        return self.gains[0].title

    @property
    def about(self) -> str:
        """One sentence that explains the accuracy, without a full stop."""
        return metric_facts(self.metric).about

    @property
    def chance_title(self) -> str:
        """What has the accuracy `chance`, for people."""
        return "chance" if self.metric == VIEW_TOP1 else "the largest class alone"

    @property
    def method(self) -> str:
        """How the intervals of the differences were computed, for people, without a full stop."""
        methods = list(dict.fromkeys(each.difference.method for each in self.gains))
        if len(self.gains) == 1:
            return f"95 % interval: {methods[0]}"
        return f"95 % intervals: {'; '.join(methods)}. Holm's correction for {len(self.gains)} comparisons"

    @property
    def sentence(self) -> str:
        """The headline with its numbers, for people; also what the accuracy is, unless it is that of kNN."""
        before = "untrained" if self.is_random else "before the training"
        chance = "" if self.chance is None else f", {self.chance_title} {self.chance:.1%}"
        pixels = "" if self.pixels is None else f", raw pixels {self.pixels:.1%}"
        numbers = (
            f"{self.headline}. {self.title} {self.accuracy:.1%} ({self.low:.1%} to {self.high:.1%}), "
            f"{before} {self.untrained:.1%}{pixels}{chance}. {self.method}."
        )
        return " ".join(filter(None, [numbers, self.outlook, *self.explanation]))

    @property
    def explanation(self) -> list[str]:
        """Sentences on what the measures without labels mean, and what they do not mean; none for other measures."""
        if self.metric != VIEW_TOP1:
            return []
        images = "The training has not seen these images" if self.is_held_out else "The training has seen these images"
        sentences = [
            f"{self.about}; it needs no labels.",
            f"{images}. It measures invariance to the augmentation, not classes: labels, or the map, show whether "
            "alike images are near each other.",
        ]
        if self.spread:
            values = "; ".join(each.text for each in self.spread)
            sentences.append(
                f"{values}: features that spread have not collapsed; that alone does not make them useful."
            )
        return sentences


def verdict(session: Session, job: Job) -> Verdict | None:
    """Return what a training has learned so far, or what an evaluation shows; None without a baseline."""
    if job.kind == "evaluate":
        return _verdict_of_evaluation(session, job)
    if not job.attempt:
        return None  # it has not begun
    metric = accuracy_of([job])
    first = session.get_one(Job, _firsts(session, [job.id])[job.id])
    is_over, is_random = job.status in TERMINAL, first.spec.get("weights") is None
    counts = [1] * _num_views(job) if metric == VIEW_TOP1 else _test_counts(session, job) or []
    curve = _gain_of_curve(session, job, metric, sum(counts)) if counts else None
    gains = [] if curve is None else [curve]
    if is_random:  # the baselines of evaluations began with random weights
        gains += _gains_of_checkpoints(session, job, has_knn=curve is not None)
    contrasts = _contrasts(session, job, sum(counts), is_over) if counts and metric == KNN_TOP1 else []
    judged = _judged(gains, counts if curve else None, is_over, contrasts, is_random)
    return judged and (_without_labels(session, job, judged) if metric == VIEW_TOP1 else judged)


def _without_labels(session: Session, job: Job, judged: Verdict) -> Verdict:
    """Return a verdict by view accuracy with the other baseline, and how widely the features spread."""
    latest = job.latest_metrics or {}
    pixels = untrained_accuracies(session, [job.id], VIEW_TOP1_PIXELS).get(job.id)
    first = _firsts(session, [job.id])[job.id]
    curves = metrics(session, first, _SPREADS, first=0, last=0)
    before = {name: curves[name][-1].value for name in _SPREADS if curves.get(name)}
    spread = [
        Spread(each, float(latest[each]), untrained)
        for each, untrained in before.items()
        if untrained is not None and latest.get(each) is not None
    ]
    is_held_out = bool(job.spec["data"].get("held_out_share"))
    return replace(judged, pixels=pixels, is_held_out=is_held_out, spread=spread)


def _verdict_of_evaluation(session: Session, job: Job) -> Verdict | None:
    statement = (
        select(Evaluation)
        .join(JobEvaluation, JobEvaluation.evaluation_id == Evaluation.id)
        .where(JobEvaluation.job_id == job.id)
        .order_by(Evaluation.id)
    )
    return _judged([*_gains(session, list(session.execute(statement).scalars()))], None, job.status in TERMINAL)


def _gain_of_curve(session: Session, job: Job, metric: str, count: int) -> Gain | None:
    """Return the gain of the accuracy that the training itself measures; None before its second measurement."""
    latest = job.latest_metrics or {}
    accuracy, before = latest.get(metric), untrained_accuracies(session, [job.id], metric).get(job.id)
    later = select(Point.step).join(Series, Series.id == Point.series_id)
    later = later.where(Series.job_id == job.id, Series.name == metric, Point.value.is_not(None), Point.step > 0)
    if accuracy is None or before is None or session.execute(later.limit(1)).first() is None:
        return None
    gap = _paired_gap(accuracy - before, latest.get(metric + GAINED), latest.get(metric + LOST), count, metric)
    if gap is None:
        images = f"{count:,} {_images(metric)}"
        gap = Difference(accuracy - before, *newcombe(accuracy, before, count), f"not paired, {images}")
    return Gain(metric_facts(metric).title, metric, float(accuracy), before, gap, count)


def _paired_gap(value: float, gained: float | None, lost: float | None, count: int, metric: str) -> Difference | None:
    """Return a difference from the images that a training has gained and lost; None without them."""
    if gained is None or lost is None or abs(gained - lost - value) > 1e-6:
        return None
    pairs = Pairs(count, (gained - lost) * count, (gained + lost) * count)
    return Difference(value, *paired(pairs), f"paired over {count:,} {_images(metric)}")


def _images(metric: str) -> str:
    return "images" if metric == VIEW_TOP1 else "test images"


def _gains_of_checkpoints(session: Session, job: Job, *, has_knn: bool) -> Iterator[Gain]:
    """Yield the gains by evaluations of a training's checkpoints; of each measure, at its last measured checkpoint.

    Evaluations on other data are left out, and those of a checkpoint that was selected for its accuracy.
    """
    statement = (
        select(Evaluation, Checkpoint.step, Checkpoint.epoch, Job.origin)
        .join(Checkpoint, Checkpoint.sha256 == Evaluation.features_digest)
        .join(JobEvaluation, JobEvaluation.evaluation_id == Evaluation.id)
        .join(Job, Job.id == JobEvaluation.job_id)
        .where(Checkpoint.job_id == job.id, Evaluation.dataset_digest == job.dataset_digest)
        .order_by(Checkpoint.step, Evaluation.protocol_version, Evaluation.id)
    )
    newest: dict[tuple[str, ...], Evaluation] = {}
    epochs: dict[str, int] = {}
    for evaluation, _step, epoch, origin in session.execute(statement):
        if BEST_ORIGIN.fullmatch(origin or "") or (has_knn and evaluation.protocol == "knn"):
            continue
        newest[evaluation.protocol, evaluation.metric, evaluation.params_digest] = evaluation
        epochs[evaluation.id] = epoch
    last = job.spec["epochs"] if job.status in TERMINAL else None
    yield from _gains(session, list(newest.values()), {id: epoch for id, epoch in epochs.items() if epoch != last})


def _gains(session: Session, evaluations: Sequence[Evaluation], epochs: dict[str, int] | None = None) -> Iterator[Gain]:
    """Yield the gain by the main measure of each evaluation whose untrained network was measured, by protocol."""
    around = beside(session, evaluations)
    ordered = sorted(evaluations, key=lambda each: (protocol_place(each.protocol), each.id))
    for evaluation in ordered:
        values = around.get(evaluation.id, Beside())
        if not protocol_facts(evaluation.protocol).is_main(evaluation.metric) or values.difference is None:
            continue
        assert evaluation.value is not None
        assert evaluation.n is not None
        assert values.untrained is not None
        yield Gain(
            title=label(evaluation),
            metric=f"{evaluation.protocol}/{evaluation.metric}",
            accuracy=evaluation.value,
            untrained=values.untrained,
            difference=values.difference,
            num_images=evaluation.n,
            epoch=(epochs or {}).get(evaluation.id),
            evaluation_id=evaluation.id,
        )


def _judged(
    gains: Sequence[Gain],
    counts: list[int] | None,
    is_over: bool,
    contrasts: Sequence[Contrast] = (),
    is_random: bool = True,
) -> Verdict | None:
    """Return the verdict over all gains; None without one.

    Args:
        counts: the images of the first measure by class; None if it is an evaluation.
    """
    if not gains:
        return None
    shown = all_shown([each.difference for each in gains])
    judged = [
        replace(each, is_over=is_over, is_shown=is_over and is_shown)
        for each, is_shown in zip(gains, shown, strict=True)
    ]
    first = judged[0]
    low, high = wilson(min(1.0, max(0.0, first.accuracy)), first.num_images)
    chance = max(counts) / sum(counts) if counts else None
    sentences = [_headline(judged, is_random, is_over, with_numbers=each) for each in (True, False)]
    return Verdict(sentences[0], sentences[1], judged, low, high, chance, list(contrasts), is_random)


def _headline(gains: Sequence[Gain], is_random: bool, is_over: bool, *, with_numbers: bool) -> str:
    """Return in one sentence what all measures show, without a full stop; one measure is always told with numbers."""
    beginning = "the untrained network" if is_random else "the weights that it started from"
    first = gains[0]
    if not is_over and len(gains) > 1:
        if with_numbers:
            return f"So far, against {beginning}: {', '.join(each.phrase for each in gains)}"
        return headline(first.difference, beginning, is_over, _inside(first.title))
    few = ""
    if is_over and first.num_images < _FEW and not all(each.is_shown for each in gains):
        few = f"; {first.num_images:,} {_images(first.metric)} are few"
    if len(gains) == 1:
        return headline(first.difference, beginning, is_over) + few
    phrases = [(each.phrase, each.finding) for each in gains]
    return _over_measures(phrases, beginning, numbers=with_numbers) + few


def before_training(session: Session, jobs: Sequence[Job]) -> dict[str, str]:
    """Return, by job, a phrase about a latest accuracy that is still that of the network before its first step.

    A training measures its network before the first step, and shows that value until the first measurement after it.
    """
    phrases = {}
    for metric in (KNN_TOP1, VIEW_TOP1):
        values = {
            job.id: (job, value)
            for job in jobs
            if job.kind == "pretrain" and (value := (job.latest_metrics or {}).get(metric)) is not None
        }
        is_later = select(Point.step).where(Point.series_id == Series.id, Point.step > 0).exists()
        later = select(Series.job_id).where(Series.job_id.in_(values), Series.name == metric, is_later)
        trained = set(session.execute(later).scalars()) if values else set()
        for job, value in (values[job_id] for job_id in values.keys() - trained):
            network = "untrained network" if job.spec.get("weights") is None else "before the training"
            until = "" if job.status in TERMINAL else f"; first measurement of the training after epoch {_first(job):,}"
            phrases[job.id] = f"{network}: {value:.1%}{until}"
    return phrases


def _first(job: Job) -> int:
    """Return the first epoch after which a training measures its accuracy."""
    ends = [*job.spec.get("restarts", ()), job.spec["epochs"]]
    return min(int(epoch) for epoch in (job.spec["knn_every_epochs"], *ends) if epoch)


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


def headline(
    gap: Difference, other: str, is_over: bool, subject: str = "", *, count: int = 1, is_shown: bool = True
) -> str:
    """Return whether a difference is shown, in a few words without a full stop; the first ones say whether.

    >>> headline(Difference(0.12, 0.1, 0.14, ""), "the untrained network", is_over=True)
    'Better than the untrained network by 12.0 ± 2.0 points'
    >>> headline(Difference(0.003, -0.025, 0.031, ""), "WCL", is_over=True, subject="SimCLR")
    'No difference shown: SimCLR 0.3 points ahead of WCL, interval -2.5 to +3.1'
    >>> headline(Difference(0.02, -1.4, 1.5, ""), "WCL", is_over=True, subject="SimCLR")
    'No difference shown: SimCLR 2.0 points ahead of WCL, too few seeds for an interval'
    >>> headline(Difference(0.12, 0.1, 0.14, ""), "the untrained network", is_over=False)
    'So far: 12.0 points above the untrained network, interval +10.0 to +14.0'

    Args:
        gap: the accuracy of the subject minus that of the other side.
        other: the other side.
        is_over: whether no later measurement can change the finding; until then there is none.
        subject: the side that is better or worse; empty for the job on whose page this stands.
        count: of the measures that are compared.
        is_shown: whether an interval that leaves out 0 is still shown after Holm's correction for their number.
    """
    points, margin = f"{100 * abs(gap.value):.1f}", f"± {100 * gap.margin:.1f}"
    interval = (
        "too few seeds for an interval" if gap.is_open else f"interval {100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
    )
    if gap.is_shown and not is_shown:
        interval += f" before the correction for {counted(count, 'measure')}"
    if is_over and gap.is_shown and is_shown:
        finding = f"{'better than' if gap.value > 0 else 'worse than'} {other} by {points} {margin} points"
        return f"{subject} is {finding}" if subject else f"{finding[:1].upper()}{finding[1:]}"
    if gap.value:
        ahead, behind = ("ahead of", "behind") if subject else ("above", "below")
        distance = f"{points} points {ahead if gap.value > 0 else behind} {other}"
    else:
        distance = f"as good as {other}"
    finding = f"{subject} {distance}" if subject else distance
    return f"{'No difference shown' if is_over else 'So far'}: {finding}, {interval}"


def _inside(title: str) -> str:
    """Return the title of a measure as it stands inside a sentence."""
    return title if title.startswith("kNN") else f"{title[:1].lower()}{title[1:]}"


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
        gap = _paired_over_images(session, (own, twin), (ours, others), (step, step))
        gap = gap or difference(ours, others, num_images)
        if gap is not None:
            is_last = step == max(max(curves[each.id], default=0) for each in (*own.values(), *twin.values()))
            ids = [own[seed].id for seed in ours] + [twin[seed].id for seed in others]
            title = method_title(next(iter(twin.values())).spec["method"])
            further = _further(session, [list(own.values()), list(twin.values())], has_knn=True)
            contrasts.append(Contrast(f"its {title} twin", gap, step, is_last, ids, is_over, further=further))
    return contrasts


def _further(session: Session, both: Sequence[Sequence[Job]], *, has_knn: bool) -> list[tuple[str, Difference]]:
    """Return the main measures that two configurations have in common, each at the last epoch that both have measured.

    Measures on other data are left out, and those of a checkpoint that was selected for its accuracy.

    Args:
        both: the jobs of each.
        has_knn: whether the trainings themselves have measured kNN, which is then compared already.
    """
    chosen = [Configuration(number, list(jobs)) for number, jobs in enumerate(both, start=1)]
    table: dict[Measure, dict[int, Result]] = defaultdict(dict)
    for configuration, measure, result in measured(session, chosen):
        is_main = protocol_facts(measure.protocol).is_main(measure.metric)
        is_own = measure.dataset_digest == configuration.jobs[0].dataset_digest and result.selection is None
        if is_main and is_own and result.epoch is not None and not (has_knn and measure.protocol == "knn"):
            table[measure][configuration.number] = result
    last: dict[Measure, tuple[int, str, Difference]] = {}
    for measure, results in table.items():
        if len(results) == 2 and (gap := between(results[1], results[2])) is not None:
            alike, epoch = replace(measure, rule=""), results[1].epoch or 0
            if alike not in last or last[alike][0] < epoch:
                last[alike] = (epoch, label(results[1].evaluations[-1]), gap)
    ordered = sorted(last.items(), key=lambda each: (protocol_place(each[0].protocol), each[0].params))
    return [(title, gap) for _, (_, title, gap) in ordered]


def between(first: Result, second: Result) -> Difference | None:
    """Return the difference of two results of one measure; None where nothing gives an interval."""
    counts = {first.num_images, second.num_images}
    if pair := one_pair(first.seeds, second.seeds):
        own = [each.evaluations[each.seeds.index(seed)] for each, seed in zip((first, second), pair, strict=True)]
        if gap := difference_of_one_seed(*own):
            return gap
    ours, others = (dict(zip(result.seeds, result.values, strict=True)) for result in (first, second))
    return difference(ours, others, counts.pop() if len(counts) == 1 else None)


def best_of(session: Session, configurations: Sequence[dict[int, Job]], names: Sequence[str]) -> Contrast | None:
    """Return the best configuration by kNN accuracy against the second one; None where nothing can be compared.

    The one that the other measures show to be better, and kNN does not show to be worse, stands first.

    Without labels the view accuracy takes its place. All are compared at the last step that each of them has measured;
    without one, as of a run and its continuation, each at its own last step.

    Args:
        configurations: the jobs of each, by seed.
        names: of the configurations.
    """
    every = [job for each in configurations for job in each.values()]
    metric = accuracy_of(every)
    curves = _curves(session, [job.id for job in every], metric)
    steps = [{step for job in each.values() for step in curves[job.id] if step > 0} for each in configurations]
    common = set.intersection(*steps)
    if not all(steps):
        return None
    lasts = [max(common)] * len(steps) if common else [max(each) for each in steps]
    accuracies = [_at(each, curves, step) for each, step in zip(configurations, lasts, strict=True)]
    means = [sum(values.values()) / len(values) for values in accuracies]
    first, second = sorted(range(len(means)), key=lambda place: -means[place])[:2]
    count = sum(_test_counts(session, every[0]) or []) if metric == KNN_TOP1 else _num_views(every[0])
    both = [configurations[first], configurations[second]], [accuracies[first], accuracies[second]]
    gap = _paired_over_images(session, *both, [lasts[first], lasts[second]]) if metric == KNN_TOP1 else None
    gap = gap or difference(accuracies[first], accuracies[second], count or None)
    if gap is None:
        return None
    if gap.value < 0:  # over the seeds that both have, the second one is better
        first, second, gap = second, first, gap.reversed
    is_over = all(job.status in TERMINAL for job in every)
    step, other_step = lasts[first], None if common else lasts[second]
    facts = (gap, step, step == max(map(max, steps)), [job.id for job in every], is_over)
    further = _further(
        session, [[*configurations[each].values()] for each in (first, second)], has_knn=metric == KNN_TOP1
    )
    contrast = Contrast(
        names[second], *facts, subject=names[first], metric=metric, other_step=other_step, further=further
    )
    return contrast.reversed if contrast.finding == "worse" else contrast


def _paired_over_images(
    session: Session,
    sides: Sequence[Mapping[int, Job]],
    accuracies: Sequence[Mapping[int, float]],
    steps: Sequence[int],
) -> Difference | None:
    """Return the difference of one seed image by image; None unless evaluations have stored which ones were right.

    Args:
        sides: the jobs of both, by seed.
        accuracies: of the jobs that have measured theirs, by seed.
        steps: of these measurements.
    """
    if (pair := one_pair(*accuracies)) is None:
        return None
    own = [_knn_at(session, side[seed], step) for side, seed, step in zip(sides, pair, steps, strict=True)]
    gaps = [difference_of_one_seed(ours, others) for ours, others in product(*own)]
    return next((gap for gap in gaps if gap and gap.method.startswith("one seed, paired")), None)


def _knn_at(session: Session, job: Job, step: int) -> list[Evaluation]:
    """Return the kNN evaluations of a training's checkpoint on its dataset, newest first."""
    statement = (
        select(Evaluation)
        .join(Checkpoint, Checkpoint.sha256 == Evaluation.features_digest)
        .where(Checkpoint.job_id == job.id, Checkpoint.step == step, Evaluation.dataset_digest == job.dataset_digest)
        .where(Evaluation.protocol == "knn", Evaluation.metric == "top1", Evaluation.value.is_not(None))
        .order_by(Evaluation.id.desc())
    )
    return list(session.execute(statement).scalars())


def sides(session: Session, job: Job) -> tuple[dict[int, Job], dict[int, Job]]:
    """Return the jobs with the settings of a job, and those of its twin, each by seed.

    Of several with one seed, one that has succeeded stands before one that may succeed, and the newest before others.
    """
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
    alike = [each for each in session.execute(statement).scalars() if _beside_method(each) == settings]
    alike.sort(key=lambda each: (each.status == Status.SUCCEEDED, each.status not in TERMINAL, each.id))
    own = {int(each.spec["seed"]): each for each in alike if each.spec["method"] == method}
    twin = {int(each.spec["seed"]): each for each in alike if each.spec["method"] != method}
    return own | {int(job.spec["seed"]): job}, twin


@dataclass(frozen=True)
class Twin:
    """The twin of a training.

    Attributes:
        method: of the twin.
        title: of the method, for people.
        job: the one with the same settings, if there are several the one with the same seed; None while there is none
            but failed and cancelled ones.
    """

    method: str
    title: str
    job: Job | None


def its_twin(session: Session, job: Job) -> Twin | None:
    """Return the twin of a training, which its spec alone decides; None for an evaluation, and for a sweep's trial."""
    if job.kind != "pretrain" or job.sweep_id is not None:
        return None
    method, others = twin_of(str(job.spec["method"])), sides(session, job)[1]
    by_seed = {seed: each for seed, each in others.items() if each.status not in (Status.FAILED, Status.CANCELLED)}
    newest = max(by_seed.values(), key=lambda each: each.id, default=None)
    return Twin(method, method_title(method), by_seed.get(int(job.spec["seed"]), newest))


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
