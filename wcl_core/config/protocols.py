"""Evaluation protocols: their table, their settings, and the planned evaluations of a training run.

A new protocol is named in `Protocol` and `PROTOCOLS`; `wcl_core.evaluation.results` computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from wcl_core.config.fields import ListName, Seed, SpecModel, without_repeats
from wcl_core.config.images import DataConfig

Protocol = Literal[
    "knn", "knn_wide", "linear", "linear_sgd", "few_labels", "semi_supervised", "retrieval", "embed", "map"
]
FewLabelsClassifier = Literal["nearest_class_mean", "linear"]
WITHOUT_LABELS = (
    "{name} has no labels, so nothing that compares with them is measured. Labels would add accuracies (kNN, linear, "
    "few labels), retrieval and the purity of weak labels: give two classes or more as folders, or register a list "
    "with a column label"
)
WIDE_K = 200  # neighbours of knn_wide
WIDE_TEMPERATURE = 0.1


@dataclass(frozen=True)
class Measure:
    """One number that a protocol reports.

    Attributes:
        name: as it is stored, such as `top1`.
        title: as pages show it.
        is_higher_better: whether the larger of two values is the better one.
        is_selected_on_test: whether the value was selected on the test split, so that no sweep may rank by it.
    """

    name: str
    title: str
    is_higher_better: bool = True
    is_selected_on_test: bool = False


@dataclass(frozen=True)
class ProtocolFacts:
    """The facts about a protocol, without its computation.

    Attributes:
        title: as pages show it.
        description: one clause for the description of a spec's `protocols`.
        measures: the numbers that it reports, the main one first; none if it writes a file instead.
        num_values: how many values of each measure it reports under the given settings.
        num_values_fields: the settings that `num_values` depends on, as words of an error message.
        adjective: as it stands before the title of a measure; the title if empty.
        about: what its main measure is, in one plain sentence without a full stop.
    """

    title: str
    description: str = ""
    measures: tuple[Measure, ...] = ()
    num_values: Callable[[ProtocolSettings], int] = lambda _settings: 1
    num_values_fields: str = ""
    adjective: str = ""
    about: str = ""

    def is_main(self, measure: str) -> bool:
        return bool(self.measures) and self.measures[0].name == measure

    def is_higher_better(self, measure: str) -> bool:
        """Return whether the larger value of a measure is the better one; True for an unknown measure."""
        return next((each.is_higher_better for each in self.measures if each.name == measure), True)


_TOP1 = Measure("top1", "accuracy")
_PER_CLASS = Measure("mean_per_class", "accuracy, mean of the classes")
PROTOCOLS: dict[Protocol, ProtocolFacts] = {
    "knn": ProtocolFacts(
        "kNN",
        "knn_k nearest neighbours vote",
        (_TOP1,),
        about="Share of test images whose class is that of the most similar training images",
    ),
    "knn_wide": ProtocolFacts(
        "wide kNN",
        f"{WIDE_K} nearest neighbours vote, at temperature {WIDE_TEMPERATURE}",
        (_TOP1,),
        about=f"Like kNN accuracy, with the {WIDE_K} most similar training images",
    ),
    "linear": ProtocolFacts(
        "linear probe",
        "a linear classifier by L-BFGS on cached features",
        (_TOP1, _PER_CLASS),
        about="Share of test images that a simple classifier on the frozen features names rightly",
    ),
    "linear_sgd": ProtocolFacts(
        "linear probe by SGD",
        "a linear classifier by SGD on augmented images, as published",
        (_TOP1, _PER_CLASS, Measure("top1_selected_on_test", "accuracy, selected on test", is_selected_on_test=True)),
        adjective="SGD linear probe",
        about="Like the linear probe, trained on augmented images as in published tables",
    ),
    "few_labels": ProtocolFacts(
        "few labels",
        "classifiers of labels_per_class labelled images a class",
        (_TOP1,),
        lambda settings: len(settings.labels_per_class) * len(settings.few_labels_classifiers),
        "labels_per_class",
        "few-label",
        about="Share of test images that a classifier names rightly that saw only a few labelled images of each class",
    ),
    "semi_supervised": ProtocolFacts(
        "semi-supervised",
        "all weights fine-tuned on a part of the labels",
        (_TOP1,),
        lambda settings: len(settings.semi_supervised.shares) + len(settings.semi_supervised.lists),
        "semi_supervised.shares or .lists",
        about="Share of test images named rightly after training the whole network on a part of the labels",
    ),
    "retrieval": ProtocolFacts(
        "retrieval",
        "ranks of train images of the same class",
        (
            Measure("recall_at_1", "recall at 1"),
            Measure("recall_at_5", "recall at 5"),
            Measure("mean_average_precision", "mean average precision"),
        ),
        about="Share of test images whose most similar training images are of their class",
    ),
    "embed": ProtocolFacts("features", "the features of all images as a float16 file"),
    "map": ProtocolFacts("map", "images in two dimensions by their features"),
}


def protocol_facts(name: str) -> ProtocolFacts:
    """Return the facts of a protocol; an unknown one, as in an older evaluation, has a title only."""
    return next(
        (facts for protocol, facts in PROTOCOLS.items() if protocol == name), ProtocolFacts(name.replace("_", " "))
    )


def protocol_place(name: str) -> int:
    """Return the place of a protocol in lists; an unknown one comes last."""
    return next((place for place, protocol in enumerate(PROTOCOLS) if protocol == name), len(PROTOCOLS))


def measure_title(name: str) -> str:
    """Return the title of a measure of any protocol; for an unknown measure, its name in words."""
    measures = (measure for facts in PROTOCOLS.values() for measure in facts.measures)
    return next((measure.title for measure in measures if measure.name == name), name.replace("_", " "))


def result_title(protocol: str, measure: str) -> str:
    """Return the title of a measured number, for tables and headings.

    >>> result_title("knn", "top1"), result_title("linear", "top1"), result_title("retrieval", "recall_at_5")
    ('kNN accuracy', 'Linear probe accuracy', 'Retrieval recall at 5')
    """
    facts = protocol_facts(protocol)
    text = f"{facts.adjective or facts.title} {measure_title(measure)}"
    return text if text.startswith("kNN") else text[:1].upper() + text[1:]


class LinearSgdConfig(SpecModel):
    """Settings of `linear_sgd`, the linear protocol as published; the rate is 0.2 * batch / 256."""

    epochs: int = Field(default=80, ge=1, le=10_000, description="Epochs of training.")
    batch_size: int = Field(default=4096, ge=1, le=65_536, description="Images a step; all of a smaller train split.")
    crop_scale_min: float = Field(default=0.08, gt=0, le=1, description="Smallest crop as a share of the image's area.")
    flip_probability: float = Field(default=0.5, ge=0, le=1, description="Probability of a horizontal flip.")


class SemiSupervisedConfig(SpecModel):
    """Settings of `semi_supervised`: all weights are fine-tuned on a class-balanced share of the labels or a list."""

    lists: tuple[ListName, ...] = Field(
        default=(), max_length=8, description="Lists of labelled images, registered with the dataset."
    )
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.01, 0.1),
        max_length=4,
        description="Shares of the train labels, at least one label a class. With `lists`, none unless set.",
    )
    splits: int = Field(
        default=5,
        ge=2,
        le=100,
        description="Number of random splits, or of trainings on a list; the result is their mean.",
    )
    epochs: int = Field(default=30, ge=1, le=10_000, description="Epochs of fine-tuning.")
    batch_size: int = Field(default=128, ge=1, le=65_536, description="Images a step; all labelled ones if fewer.")
    backbone_learning_rate: float = Field(
        default=0.01, gt=0, le=100, description="First learning rate of the backbone; it falls to 0 by a cosine."
    )
    head_learning_rate: float = Field(
        default=0.1, gt=0, le=100, description="First learning rate of the classifier; it falls to 0 by a cosine."
    )
    crop_scale_min: float = Field(default=0.08, gt=0, le=1, description="Smallest crop as a share of the image's area.")
    flip_probability: float = Field(default=0.5, ge=0, le=1, description="Probability of a horizontal flip.")

    @model_validator(mode="before")
    @classmethod
    def _drop_default_shares(cls, data: Any) -> Any:
        return {"shares": ()} | data if isinstance(data, dict) and data.get("lists") else data

    @field_validator("lists", "shares")
    @classmethod
    def _no_repeats(cls, values: tuple[str | float, ...]) -> tuple[str | float, ...]:
        return without_repeats(values)

    @field_validator("shares")
    @classmethod
    def _check_shares(cls, shares: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if not shares and info.data.get("lists") == ():
            raise ValueError("there is nothing to measure; expected a share here, or a name in `lists`")
        return shares


class MapConfig(SpecModel):
    """Settings of `map`: some images in two dimensions by PCA and t-SNE, with their nearest neighbours."""

    split: Literal["test", "train"] = Field(default="test", description="The split that the images are from.")
    images: int = Field(default=2000, ge=10, le=2000, description="Largest number of images; drawn at random.")
    perplexity: float = Field(
        default=30, ge=2, le=200, description="Perplexity of t-SNE; reduced to a third of the images if larger."
    )


class ProtocolSettings(SpecModel):
    """The protocols that measure the features, and their settings."""

    protocols: tuple[Protocol, ...] = Field(
        default=("knn", "linear", "few_labels"),
        min_length=1,
        description="; ".join(f"`{name}`: {facts.description}" for name, facts in PROTOCOLS.items()) + ".",
    )
    seed: Seed = 0
    knn_k: int = Field(default=20, ge=1, le=1000, description="Number of neighbours of `knn`.")
    knn_temperature: float = Field(
        default=0.07, gt=0, le=10, description="Temperature T of `knn`; a neighbour votes with exp(cosine / T)."
    )
    labels_per_class: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field(
        default=(1, 5), min_length=1, max_length=8, description="Labelled images of each class for `few_labels`."
    )
    draws: int = Field(
        default=20, ge=2, le=1000, description="Number of random draws of `few_labels`; the result is their mean."
    )
    few_labels_classifiers: tuple[FewLabelsClassifier, ...] = Field(
        default=("nearest_class_mean",), min_length=1, description="Classifiers of `few_labels`, on the same draws."
    )
    linear_sgd: LinearSgdConfig = LinearSgdConfig()
    semi_supervised: SemiSupervisedConfig = SemiSupervisedConfig()
    retrieval_examples: int = Field(
        default=8, ge=0, le=100, description="Number of test images whose nearest train images `retrieval` lists."
    )
    map: MapConfig = MapConfig()

    @field_validator("protocols", "labels_per_class", "few_labels_classifiers")
    @classmethod
    def _no_repeats(cls, values: tuple[str | int, ...]) -> tuple[str | int, ...]:
        return without_repeats(values)

    def fitted(self, smallest: int, images: float, num_classes: int) -> Self:
        """Return settings whose defaults fit a dataset; what was set stays, also if it does not fit.

        Args:
            smallest: train images of the smallest class.
            images: train images of all classes.
            num_classes: with fewer than two there are no labels, and the default is a map.
        """
        if num_classes < 2:
            is_set = "protocols" in self.model_fields_set
            return self if is_set else self.model_copy(update={"protocols": ("map",)})
        fitting: dict[str, Any] = {}
        if "knn_k" not in self.model_fields_set:
            fitting["knn_k"] = max(1, min(self.knn_k, largest_k(smallest)))
        if "labels_per_class" not in self.model_fields_set:
            counts = tuple(count for count in self.labels_per_class if count <= smallest)
            fitting["labels_per_class"] = counts or self.labels_per_class
        tuned = self.semi_supervised
        if "shares" not in tuned.model_fields_set:
            shares = tuple(share for share in tuned.shares if labels_per_class(share, images, num_classes) <= smallest)
            fitting["semi_supervised"] = tuned.model_copy(update={"shares": shares or tuned.shares})
        return self.model_copy(update={name: value for name, value in fitting.items() if value != getattr(self, name)})


def largest_k(smallest: int) -> int:
    """Return the largest k of kNN for a smallest train class of so many images: half of them, but at least 1."""
    return max(1, smallest // 2) if smallest else 0


def labels_per_class(share: float, images: float, num_classes: int) -> int:
    """Return the labelled images of each class for a share of the labels of so many train images."""
    return max(1, round(share * images / max(1, num_classes)))


def check_lists(tuned: SemiSupervisedConfig | None, data: DataConfig | None) -> None:
    """Raise if lists of labelled train images are combined with held-out train images.

    Raises:
        ValueError: both are set; the message names both fields.
    """
    if tuned is not None and tuned.lists and data is not None and data.held_out_share:
        raise PydanticCustomError(
            "field_below",  # the error of `data` is that of one of its fields
            "held_out_share is {share}, which removes train images that semi_supervised.lists may name; use 0, or "
            "remove the lists",
            {"field": "held_out_share", "share": f"{data.held_out_share:g}"},
        )


class EvaluationPlan(ProtocolSettings):
    """A planned evaluation: measures checkpoints of a training job, as jobs of its own once they are registered."""

    data: DataConfig | None = Field(
        default=None, description="The data to measure on; unset, the training data. Another dataset measures transfer."
    )
    when: Literal["final", "best", "every"] = Field(
        default="final",
        description=(
            "`final`: the last checkpoint. `best`: the checkpoint with the best eval/knn_top1, which is selected on "
            "the test split. Both are measured once the job succeeds. `every`: one checkpoint every `every_epochs` "
            "epochs, and the last one."
        ),
    )
    every_epochs: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        validate_default=True,
        description="Epochs between two measured checkpoints; only for when = every.",
    )

    @field_validator("data")
    @classmethod
    def _check_label_lists(cls, data: DataConfig | None, info: ValidationInfo) -> DataConfig | None:
        check_lists(info.data.get("semi_supervised"), data)
        return data

    @field_validator("every_epochs")
    @classmethod
    def _check_every_epochs(cls, every_epochs: int | None, info: ValidationInfo) -> int | None:
        is_every = info.data.get("when") == "every"
        if is_every != (every_epochs is not None):
            raise ValueError(
                "when = every needs every_epochs; set it to a multiple of checkpoints.every_epochs"
                if is_every
                else f"every_epochs is {every_epochs}, but when is {info.data.get('when')}; leave it out, or use every"
            )
        return every_epochs
