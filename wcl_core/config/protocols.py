"""What features can be measured under, alone or planned for the checkpoints of a training run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from wcl_core.config.fields import ListName, Seed, SpecModel, without_repeats
from wcl_core.config.images import DataConfig

Protocol = Literal[
    "knn", "knn_wide", "linear", "linear_sgd", "few_labels", "semi_supervised", "retrieval", "embed", "map"
]
FewLabelsClassifier = Literal["nearest_class_mean", "linear"]


class LinearSgdConfig(SpecModel):
    """The linear protocol as published; the rate is 0.2 * batch / 256 for the batch that is used."""

    epochs: int = Field(default=80, ge=1, le=10_000)
    batch_size: int = Field(default=4096, ge=1, le=65_536, description="Images a step; all of a smaller train split.")
    crop_scale_min: float = Field(default=0.08, gt=0, le=1, description="Smallest crop as a share of the image's area.")
    flip_probability: float = Field(default=0.5, ge=0, le=1)


class SemiSupervisedConfig(SpecModel):
    """Fine-tuning of all weights on a class-balanced share of the labels, or on fixed lists; rates start a cosine."""

    lists: tuple[ListName, ...] = Field(
        default=(), max_length=8, description="Lists of labelled images that the operator has put beside the dataset."
    )
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.01, 0.1),
        max_length=4,
        description="Shares of the train labels, one a class at least; unless given none beside `lists`.",
    )
    splits: int = Field(
        default=5,
        ge=2,
        le=100,
        description="Random splits, or trainings on a list, that a mean is over.",
    )
    epochs: int = Field(default=30, ge=1, le=10_000)
    batch_size: int = Field(default=128, ge=1, le=65_536, description="Images a step; at most the labelled ones.")
    backbone_learning_rate: float = Field(default=0.01, gt=0, le=100)
    head_learning_rate: float = Field(default=0.1, gt=0, le=100)
    crop_scale_min: float = Field(default=0.08, gt=0, le=1, description="Smallest crop as a share of the image's area.")
    flip_probability: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _lists_alone(cls, data: Any) -> Any:
        return {"shares": ()} | data if isinstance(data, dict) and data.get("lists") else data

    @field_validator("lists", "shares")
    @classmethod
    def _no_repeats(cls, values: tuple[str | float, ...]) -> tuple[str | float, ...]:
        return without_repeats(values)

    @field_validator("shares")
    @classmethod
    def _something_to_measure(cls, shares: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if not shares and info.data.get("lists") == ():
            raise ValueError("expected a share, or a list in `lists`")
        return shares


class MapConfig(SpecModel):
    """A map of the feature space, to be looked at: PCA, t-SNE and nearest neighbours of some images."""

    split: Literal["test", "train"] = "test"
    images: int = Field(default=2000, ge=10, le=2000, description="At most so many, drawn at random.")
    perplexity: float = Field(default=30, ge=2, le=200, description="Of t-SNE; at most a third of the images is used.")


class ProtocolSettings(SpecModel):
    """Under which protocols features are measured, and their parameters."""

    protocols: tuple[Protocol, ...] = Field(
        default=("knn", "linear", "few_labels"),
        min_length=1,
        description=(
            "`knn`: knn_k neighbours; `knn_wide`: 200 neighbours, temperature 0.1; `linear`: L-BFGS on cached "
            "features; `linear_sgd`: SGD as published; `few_labels`; `semi_supervised`: fine-tuning; `retrieval`; "
            "`embed`: the features of both splits as a float16 file; `map`: images laid out by their features."
        ),
    )
    seed: Seed = 0
    knn_k: int = Field(default=20, ge=1, le=1000)
    knn_temperature: float = Field(default=0.07, gt=0, le=10)
    labels_per_class: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field(
        default=(1, 5), min_length=1, max_length=8
    )
    draws: int = Field(default=20, ge=2, le=1000)
    few_labels_classifiers: tuple[FewLabelsClassifier, ...] = Field(
        default=("nearest_class_mean",), min_length=1, description="What learns from few labels, on the same draws."
    )
    linear_sgd: LinearSgdConfig = LinearSgdConfig()
    semi_supervised: SemiSupervisedConfig = SemiSupervisedConfig()
    retrieval_examples: int = Field(
        default=8, ge=0, le=100, description="Test images whose nearest train images the result lists."
    )
    map: MapConfig = MapConfig()

    @field_validator("protocols", "labels_per_class", "few_labels_classifiers")
    @classmethod
    def _no_repeats(cls, values: tuple[str | int, ...]) -> tuple[str | int, ...]:
        return without_repeats(values)


def check_lists(tuned: SemiSupervisedConfig | None, data: DataConfig | None) -> None:
    """Refuse lists of labelled train images where some train images are held out.

    Raises:
        ValueError: naming both fields.
    """
    if tuned is not None and tuned.lists and data is not None and data.held_out_share:
        raise ValueError("held_out_share takes some of the train images that semi_supervised.lists name; expected 0")


class EvaluationPlan(ProtocolSettings):
    """Evaluations of a training run's checkpoints, submitted as jobs of their own when the checkpoints are there."""

    data: DataConfig | None = Field(
        default=None, description="What to measure on; the training data unless given. Another dataset is a transfer."
    )
    when: Literal["final", "best", "every"] = Field(
        default="final",
        description=(
            "`final`: the last checkpoint; `best`: the one of the best eval/knn_top1, which was selected on the test "
            "split; both once the run succeeded. `every`: each checkpoint of every `every_epochs` epochs, and the last."
        ),
    )
    every_epochs: int | None = Field(
        default=None, ge=1, le=100_000, validate_default=True, description="For `every`, and for it alone."
    )

    @field_validator("data")
    @classmethod
    def _lists_are_whole(cls, data: DataConfig | None, info: ValidationInfo) -> DataConfig | None:
        check_lists(info.data.get("semi_supervised"), data)
        return data

    @field_validator("every_epochs")
    @classmethod
    def _belongs_to_every(cls, every_epochs: int | None, info: ValidationInfo) -> int | None:
        is_every = info.data.get("when") == "every"
        if is_every != (every_epochs is not None):
            raise ValueError(
                "this field is required for when = every" if is_every else "only when = every has this field"
            )
        return every_epochs
