"""What a measured value must beat: chance, the raw pixels, and the untrained network, with the difference to it.

Both values of a difference are of the same test images.  So it is compared in pairs, image by image, where both
evaluations have stored which images they had right (`wcl_core.per_image`); evaluations of older versions have not, and
then the interval takes the two for independent and is too wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.models import Checkpoint, Dataset, Evaluation, Job, JobEvaluation
from jobs.seed_groups import SHARES
from wcl_core.config import result_title
from wcl_core.digests import canonical_json
from wcl_core.intervals import Difference, Z, newcombe, paired, summary
from wcl_core.per_image import KEY, pairs

_Identity = tuple[Any, ...]


@dataclass(frozen=True)
class Source:
    """The checkpoint whose features were measured or mapped, and the job that trained it.

    Attributes:
        backbone, image_size: of the training.
    """

    job_id: str
    job_name: str
    step: int
    epoch: int
    backbone: dict[str, Any] = field(default_factory=dict)
    image_size: int = 0


@dataclass(frozen=True)
class Beside:
    """The values beside a measured one; each is None where it is unknown.

    Attributes:
        chance: the accuracy of always naming the largest class.
        pixels: of the raw pixels.
        untrained: of an untrained network with the same backbone.
        difference: to the untrained network; None also for measures without an interval.
        epoch: of the measured checkpoint.
    """

    chance: float | None = None
    pixels: float | None = None
    untrained: float | None = None
    difference: Difference | None = None
    epoch: int | None = None

    @property
    def values(self) -> list[tuple[str, float]]:
        """The known values by name."""
        named = (("largest class", self.chance), ("raw pixels", self.pixels), ("untrained", self.untrained))
        return [(name, value) for name, value in named if value is not None]


def chance(dataset: Dataset, evaluation: Evaluation) -> float | None:
    """Return the accuracy of always naming the largest class of the measured images; None where it is unknown."""
    counts = (dataset.class_counts or {}).get("test")
    if evaluation.metric != "top1" or evaluation.params.get("held_out_share") or not counts:
        return None
    return float(max(counts) / sum(counts))


def label(evaluation: Evaluation) -> str:
    """Return the title of a result with the settings that tell it from others of its protocol."""
    params, title = evaluation.params, result_title(evaluation.protocol, evaluation.metric)
    settings = []
    if count := params.get("labels_per_class"):
        settings.append(f"{count} a class")
    if params.get("classifier") == "linear":
        settings.append("linear classifier")
    if share := params.get("share"):
        settings.append(f"{share:g} of the labels")
    if name := params.get("list"):
        settings.append(str(name))
    return f"{title} ({', '.join(settings)})" if settings else title


def beside(session: Session, evaluations: Sequence[Evaluation]) -> dict[str, Beside]:
    """Return what stands beside each evaluation of a trained network, by id; nothing for other features."""
    sources = sources_of(session, evaluations)
    measured = [each for each in evaluations if each.checkpoint_id in sources]
    datasets = _datasets(session, measured)
    baselines = _baselines(session, measured)
    result = {}
    for entry in measured:
        source, dataset = sources[entry.checkpoint_id or ""], datasets.get(entry.dataset_digest)
        pixels = _nearest(baselines.get((*_identity(entry), source.image_size, None)), entry)
        untrained = _nearest(baselines.get((*_identity(entry), source.image_size, _frozen(source.backbone))), entry)
        result[entry.id] = Beside(
            chance=None if dataset is None else chance(dataset, entry),
            pixels=None if pixels is None else pixels.value,
            untrained=None if untrained is None else untrained.value,
            difference=None if untrained is None else difference(entry, untrained),
            epoch=source.epoch,
        )
    return result


def difference(ours: Evaluation, other: Evaluation) -> Difference | None:
    """Return the difference of two results on the same test images; None for a measure that has no interval."""
    if ours.metric not in SHARES or ours.value is None or other.value is None or not ours.n or ours.n != other.n:
        return None
    gap, variance = ours.value - other.value, _variance(ours, other)
    details = [each.details or {} for each in (ours, other)]
    pair = pairs(details[0].get(KEY), details[1].get(KEY), ours.n)
    if pair is not None and math.isclose(pair.total / pair.images, gap, abs_tol=1e-6):
        return Difference(gap, *paired(pair, variance), f"paired over {ours.n:,} test images")
    low, high = newcombe(ours.value, other.value, ours.n)
    below, above = (math.hypot(half, Z * math.sqrt(variance)) for half in (gap - low, high - gap))
    return Difference(gap, gap - below, gap + above, f"not paired, {ours.n:,} test images")


def difference_of_one_seed(ours: Evaluation, other: Evaluation) -> Difference | None:
    """Return the difference of two trainings with one seed each; None where their test images or settings differ."""
    gap = difference(ours, other) if _identity(ours) == _identity(other) else None
    return None if gap is None else gap._replace(method=f"one seed, {gap.method}")


def _variance(ours: Evaluation, other: Evaluation) -> float:
    """Return the variance of the difference of two means over draws of labelled images; 0 without draws."""
    draws = [_draws(each) for each in (ours, other)]
    if ours.seed == other.seed and len(draws[0]) == len(draws[1]) > 1:  # the same draws
        _, deviation, _ = summary([mine - theirs for mine, theirs in zip(*draws, strict=True)])
        return (deviation or 0.0) ** 2 / len(draws[0])
    return sum((each.stderr or 0.0) ** 2 for each in (ours, other))


def _draws(evaluation: Evaluation) -> list[float]:
    details = evaluation.details or {}
    return list(details.get("by_draw") or details.get("accuracies") or ())


def sources_of(session: Session, evaluations: Sequence[Evaluation]) -> dict[str, Source]:
    """Return the measured checkpoints with their trainings, by id of the checkpoint."""
    ids = {entry.checkpoint_id for entry in evaluations if entry.checkpoint_id}
    statement = (
        select(Checkpoint.id, Checkpoint.step, Checkpoint.epoch, Job.id, Job.name, Job.spec)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(Checkpoint.id.in_(ids))
    )
    return {
        checkpoint_id: Source(job_id, name, step, epoch, spec["backbone"], spec["data"]["image_size"])
        for checkpoint_id, step, epoch, job_id, name, spec in (session.execute(statement) if ids else ())
    }


def _datasets(session: Session, evaluations: Sequence[Evaluation]) -> dict[str, Dataset]:
    digests = {entry.dataset_digest for entry in evaluations}
    rows = session.execute(select(Dataset).where(Dataset.digest.in_(digests))).scalars() if digests else ()
    return {dataset.digest: dataset for dataset in rows}


def _baselines(session: Session, evaluations: Sequence[Evaluation]) -> dict[_Identity, list[Evaluation]]:
    """Return the evaluations of raw pixels and of untrained networks, oldest first, by what they measured."""
    if not evaluations:
        return {}
    statement = (
        select(Evaluation, Job.spec)
        .join(JobEvaluation, JobEvaluation.evaluation_id == Evaluation.id)
        .join(Job, Job.id == JobEvaluation.job_id)
        .where(
            Evaluation.checkpoint_id.is_(None),
            Evaluation.dataset_digest.in_({entry.dataset_digest for entry in evaluations}),
            Evaluation.params_digest.in_({entry.params_digest for entry in evaluations}),
            Evaluation.value.is_not(None),
        )
        .order_by(Evaluation.id)
    )
    by_identity: dict[_Identity, list[Evaluation]] = {}
    for entry, spec in session.execute(statement):
        features, size = spec["features"], spec["data"]["image_size"]
        if features["kind"] in ("pixels", "untrained"):
            backbone = _frozen(features["backbone"]) if features["kind"] == "untrained" else None
            by_identity.setdefault((*_identity(entry), size, backbone), []).append(entry)
    return by_identity


def _nearest(candidates: list[Evaluation] | None, entry: Evaluation) -> Evaluation | None:
    """Return the newest baseline with the seed of an evaluation, or the newest one of all."""
    same = [each for each in candidates or () if each.seed == entry.seed]
    chosen = same or candidates
    return chosen[-1] if chosen else None


def _identity(entry: Evaluation) -> _Identity:
    names = (entry.protocol, entry.protocol_version, entry.metric)
    return (*names, entry.dataset_digest, entry.split_digest, entry.params_digest)


def _frozen(backbone: dict[str, Any]) -> str:
    return canonical_json(backbone)
