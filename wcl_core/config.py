"""One definition of every spec a job can carry.

Frozen pydantic models; unknown fields are refused; nothing here imports torch, so the API, the workers and the
client validate with exactly the rules the training loop trusts.  A spec is data: enumerated choices, numbers with
bounds and datasets by registered name, never a path, a URL or an expression.

    Spec ── PretrainSpec    a training run: method, backbone, heads, loss, optimiser, schedule, augmentation
         └─ EvaluateSpec    one set of features (a checkpoint, an untrained network, raw pixels) under some protocols
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator, model_validator

from wcl_core import plugins

SPEC_VERSION = 1
SPEC_VERSIONS = (1,)

Kind = Literal["pretrain", "evaluate"]
DatasetName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$",
        description="The registered name of a dataset.",
        examples=["digits"],
    ),
]
Seed = Annotated[int, Field(ge=0, lt=2**31, description="Seed of initialisation, data order and augmentation.")]


class _Model(BaseModel):
    # Defaults are validated too: one that contradicts another field is refused, and 10 becomes 10.0 as a sent 10 does.
    # Rules between fields belong to the later one, so that the error names it.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


_RESIDUAL = ("tiny", "resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2", "wide_resnet101_2")
_TRANSFORMERS = ("vit_small", "vit_base")


def is_transformer(backbone: str) -> bool:
    """Whether a backbone cuts its images into patches and has no stem."""
    return backbone in _TRANSFORMERS


class BackboneConfig(_Model):
    """A network without its classifier."""

    name: str = Field(
        default="tiny",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description=(
            f"One of {', '.join(_RESIDUAL + _TRANSFORMERS)}, or a backbone that is installed as a plugin. `tiny` is a "
            "three-stage ResNet for CPUs; the others are torchvision's."
        ),
        examples=["tiny"],
    )
    stem: Literal["small", "stride2", "imagenet"] = Field(
        default="small",
        description=(
            "`small`: 3x3 convolution without stride or pooling; `stride2`: 3x3 with stride 2; "
            "`imagenet`: 7x7 with stride 2 and max pooling. Transformers have none."
        ),
    )
    width: int = Field(default=64, ge=4, le=256, description="Channels of the first stage.")
    patch_size: int = Field(
        default=16, ge=2, le=64, description="Side of a transformer's patches in pixels; it divides data.image_size."
    )
    variant: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$",
        description="Which network of a plugin that brings several, by the plugin's own name for it.",
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        known = (*_RESIDUAL, *_TRANSFORMERS, *plugins.names("wcl.backbones"))
        if name not in known:
            raise ValueError(f"there is no backbone {name}; expected one of {', '.join(known)}")
        return name

    @field_validator("patch_size")
    @classmethod
    def _only_transformers_have_patches(cls, patch_size: int, info: ValidationInfo) -> int:
        if patch_size != 16 and (name := info.data.get("name")) in _RESIDUAL:
            raise ValueError(f"{name} has no patches; only {', '.join(_TRANSFORMERS)} and plugins have")
        return patch_size

    @field_validator("variant")
    @classmethod
    def _only_plugins_have_variants(cls, variant: str | None, info: ValidationInfo) -> str | None:
        if variant is not None and (name := info.data.get("name")) in _RESIDUAL + _TRANSFORMERS:
            raise ValueError(f"{name} is one network; only plugins have variants")
        return variant

    def check_image_size(self, image_size: int) -> None:
        """Refuse images that cannot be cut into whole patches.

        Raises:
            ValueError: naming both fields.
        """
        if is_transformer(self.name) and image_size % self.patch_size:
            raise ValueError(f"backbone.patch_size = {self.patch_size} does not divide data.image_size = {image_size}")

    @field_validator("width")
    @classmethod
    def _torchvision_width(cls, width: int, info: ValidationInfo) -> int:
        if (name := info.data.get("name", "tiny")) != "tiny" and width != 64:
            raise ValueError(f"width is fixed at 64 for {name}; only the tiny backbone has another one")
        return width


class HeadConfig(_Model):
    """Both projection heads: Linear-BN-ReLU-Linear-BN-ReLU-Linear, separate weights."""

    hidden_dim: int = Field(default=2048, ge=2, le=16384)
    output_dim: int = Field(default=128, ge=2, le=4096)


class LossConfig(_Model):
    """L = L_NCE + weak_weight * L_swap; SimCLR has only the first term."""

    temperature: float = Field(default=0.1, ge=0.01, le=10, description="Temperature of the instance loss.")
    weak_temperature: float = Field(default=0.1, ge=0.01, le=10, description="Temperature of the weak-label loss.")
    weak_weight: float = Field(default=1.0, ge=0, le=100, description="beta, the weight of the weak-label loss.")
    weak_ramp_fraction: float = Field(
        default=0.0, ge=0, le=1, description="Share of all steps over which beta rises linearly from 0."
    )
    detach_keys: bool = Field(default=True, description="Keys of the weak-label loss carry no gradient.")
    batch_norm_views: Literal["separate", "joint"] = Field(
        default="separate", description="Whether each view is normalised by its own statistics; `joint` is a deviation."
    )
    decoupled: bool = Field(
        default=False, description="The positive leaves the denominator of the instance loss (decoupled contrastive)."
    )
    finch_level: int = Field(
        default=1, ge=1, le=2, description="Weak labels: nearest-neighbour components or, at 2, those one level higher."
    )
    exclude_mates: bool = Field(
        default=False, description="After the ramp, images of the anchor's weak label are no keys of the instance loss."
    )


class OptimizerConfig(_Model):
    """LARS, SGD or AdamW; the base rate is `learning_rate` times the scaling rule applied to the global batch."""

    name: Literal["lars", "sgd", "adamw"] = Field(
        default="lars", description="`adamw` decays apart from the gradient and wants rates of about 0.0001."
    )
    learning_rate: float = Field(default=0.075, gt=0, le=100, description="At most 0.01 for `adamw`.")
    scaling: Literal["sqrt", "linear", "none"] = Field(
        default="sqrt", description="`sqrt`: rate * sqrt(B); `linear`: rate * B / 256; `none`: the rate itself."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), description="Decay rates of AdamW's two running means; for it alone."
    )
    weight_decay: float = Field(default=1e-6, ge=0, le=1)
    trust_coefficient: float = Field(default=1e-3, gt=0, le=1)
    lars_exclusion: Literal["one-dimensional", "official-names"] = Field(
        default="one-dimensional",
        description=(
            "What is neither decayed nor scaled: every one-dimensional parameter, or as in the released code those "
            "whose name contains `bn` or `bias`."
        ),
    )

    @field_validator("learning_rate")
    @classmethod
    def _adam_steps_are_large(cls, learning_rate: float, info: ValidationInfo) -> float:
        # The default is LARS's: with AdamW it would move every weight by a tenth at each step.
        if info.data.get("name") == "adamw" and learning_rate > 0.01:
            raise ValueError(f"{learning_rate:g} is too large for adamw; expected at most 0.01")
        return learning_rate


class AugmentConfig(_Model):
    """One set of random views; all probabilities are per sample."""

    scale_min: float = Field(default=0.08, gt=0, le=1, description="Smallest crop as a share of the image's area.")
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    jitter_probability: float = Field(default=0.8, ge=0, le=1)
    brightness: float = Field(default=0.8, ge=0, le=1)
    contrast: float = Field(default=0.8, ge=0, le=1)
    saturation: float = Field(default=0.8, ge=0, le=1)
    hue: float = Field(default=0.2, ge=0, le=0.5)
    grayscale_probability: float = Field(default=0.2, ge=0, le=1)
    blur_probability: float = Field(default=0.5, ge=0, le=1)


def weak_augmentation() -> AugmentConfig:
    """The set of the first epochs in the released recipe."""
    return AugmentConfig(scale_min=0.2, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)


class MultiCropConfig(_Model):
    """Small crops pulled to their image and its nearest neighbours; SimCLR has only the instance head's part."""

    crops: int = Field(default=0, ge=0, le=16, description="Small crops of each image; 0 is off.")
    image_size: int | None = Field(
        default=None, ge=8, le=512, description="Side of the crops in pixels; by default .43 of the views' in eights."
    )
    scale_min: float = Field(default=0.05, gt=0, le=1, description="Smallest crop as a share of the image's area.")
    scale_max: float = Field(default=0.2, gt=0, le=1, description="Largest crop as a share of the image's area.")
    neighbours: int = Field(default=4, ge=1, le=64, description="K, the nearest neighbours of each image.")
    own_share: float = Field(default=0.5, ge=0, le=1, description="Share of the image itself beside its neighbours'.")
    weight: float = Field(default=1.0, ge=0, le=100, description="gamma, the weight of the multi-crop loss.")
    ramp_fraction: float = Field(
        default=0.1, ge=0, le=1, description="Share of all steps over which the neighbours' part rises from 0."
    )
    restrict_to_component: bool = Field(
        default=False, description="Only those of the K neighbours that share the image's weak label count."
    )

    @field_validator("scale_max")
    @classmethod
    def _scales_are_ordered(cls, scale_max: float, info: ValidationInfo) -> float:
        if scale_max < (scale_min := info.data.get("scale_min", 0)):
            raise ValueError(f"scale_max ({scale_max:g}) must not be smaller than scale_min ({scale_min:g})")
        return scale_max

    def side(self, image_size: int) -> int:
        """Side of the crops beside views of `image_size` pixels: .43 of it to a multiple of 8, at least 8."""
        return self.image_size or max(8, 8 * round(0.43 * image_size / 8))


class DataConfig(_Model):
    """Which images, at which size."""

    name: DatasetName
    image_size: int = Field(default=32, ge=8, le=512, description="Side of the square training views, in pixels.")
    max_corrupt_share: float = Field(
        default=0.01, ge=0, le=1, description="The run fails when a larger share of the image files cannot be decoded."
    )


Protocol = Literal["knn", "knn_wide", "linear", "linear_sgd", "few_labels", "semi_supervised", "retrieval", "embed"]
FewLabelsClassifier = Literal["nearest_class_mean", "linear"]


class LinearSgdConfig(_Model):
    """The linear protocol as published; the rate is 0.2 * batch / 256."""

    epochs: int = Field(default=80, ge=1, le=10_000)
    batch_size: int = Field(default=4096, ge=1, le=65_536, description="Images a step; at most the train split.")
    crop_scale_min: float = Field(default=0.08, gt=0, le=1, description="Smallest crop as a share of the image's area.")
    flip_probability: float = Field(default=0.5, ge=0, le=1)


class SemiSupervisedConfig(_Model):
    """Fine-tuning of all weights on a class-balanced share of the labels; rates start a cosine."""

    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.01, 0.1), min_length=1, max_length=4, description="Shares of the train labels; one a class at least."
    )
    splits: int = Field(default=5, ge=2, le=100, description="Random splits that the mean and its error are over.")
    epochs: int = Field(default=30, ge=1, le=10_000)
    batch_size: int = Field(default=128, ge=1, le=65_536, description="Images a step; at most the labelled ones.")
    backbone_learning_rate: float = Field(default=0.01, gt=0, le=100)
    head_learning_rate: float = Field(default=0.1, gt=0, le=100)
    crop_scale_min: float = Field(default=0.08, gt=0, le=1, description="Smallest crop as a share of the image's area.")
    flip_probability: float = Field(default=0.5, ge=0, le=1)

    @field_validator("shares")
    @classmethod
    def _no_repeats(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        return _without_repeats(shares)


_V = TypeVar("_V", bound=tuple[object, ...])


def _without_repeats(values: _V) -> _V:
    if len(set(values)) != len(values):
        raise ValueError("must not repeat a value")
    return values


class ProtocolSettings(_Model):
    """Under which protocols features are measured, and their parameters."""

    protocols: tuple[Protocol, ...] = Field(
        default=("knn", "linear", "few_labels"),
        min_length=1,
        description=(
            "`knn`: knn_k neighbours; `knn_wide`: 200 neighbours, temperature 0.1; `linear`: L-BFGS on cached "
            "features; `linear_sgd`: SGD as published; `few_labels`; `semi_supervised`: fine-tuning; `retrieval`; "
            "`embed`: the features of both splits as a float16 file."
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

    @field_validator("protocols", "labels_per_class", "few_labels_classifiers")
    @classmethod
    def _no_repeats(cls, values: tuple[str | int, ...]) -> tuple[str | int, ...]:
        return _without_repeats(values)


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

    @field_validator("every_epochs")
    @classmethod
    def _belongs_to_every(cls, every_epochs: int | None, info: ValidationInfo) -> int | None:
        is_every = info.data.get("when") == "every"
        if is_every != (every_epochs is not None):
            raise ValueError(
                "this field is required for when = every" if is_every else "only when = every has this field"
            )
        return every_epochs


class CheckpointConfig(_Model):
    """When the run writes a checkpoint; the last epoch always writes one."""

    every_epochs: int = Field(default=1, ge=1, le=100_000)
    first_epoch: bool = Field(default=False, description="Also keep the state after the first epoch.")


class PretrainSpec(_Model):
    """A self-supervised training run."""

    spec_version: Literal[1] = 1
    method: Literal["wcl", "simclr"] = "wcl"
    data: DataConfig
    seed: Seed = 0
    epochs: int = Field(default=100, ge=1, le=100_000)
    batch_size: int = Field(
        default=256, ge=2, le=65_536, description="Global batch, in images; the last incomplete one drops."
    )
    backbone: BackboneConfig = BackboneConfig()
    heads: HeadConfig = HeadConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    warmup_epochs: float = Field(
        default=10,
        ge=0,
        le=100_000,
        description="Epochs of linear warm-up before the cosine; unless given at most a tenth of all.",
    )
    weak_augmentation_epochs: int = Field(
        default=10,
        ge=0,
        le=100_000,
        description="Epochs that use `weak_augmentation`; unless given at most a tenth of all.",
    )
    weak_augmentation: AugmentConfig = Field(default_factory=weak_augmentation)
    augmentation: AugmentConfig = AugmentConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    log_every_steps: int = Field(default=10, ge=1, le=100_000)
    knn_every_epochs: int = Field(default=0, ge=0, le=100_000, description="kNN accuracy on the test split; 0 never.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="`auto`: bfloat16 autocast on a GPU, float32 on a CPU."
    )
    threads: int | None = Field(default=None, ge=1, le=512, description="CPU threads of each training process.")
    processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes of one machine that share each batch; a GPU each where there are enough, else the CPU.",
    )
    monitor_every_epochs: int = Field(
        default=1, ge=0, le=100_000, description="Monitors of a fixed batch, and the look for collapse; 0 never."
    )
    on_collapse: Literal["warn", "pause", "fail"] = Field(
        default="warn", description="What happens when three looks in a row find the representation collapsed."
    )
    on_non_finite: Literal["fail", "pause"] = Field(
        default="fail", description="What happens when the loss or the weights stop being finite."
    )
    evaluations: tuple[EvaluationPlan, ...] = Field(
        default=(), max_length=8, description="What to measure on the run's checkpoints, by jobs of their own."
    )

    multi_crop: MultiCropConfig = MultiCropConfig()
    queue_size: int = Field(
        default=0, ge=0, le=2**20, description="Images of past steps that are neighbours and keys too; 0 is off."
    )
    momentum_decay: float | None = Field(
        default=None, ge=0, lt=1, description="Keys, graph and labels come from a moving average of the network."
    )
    micro_batch_size: int | None = Field(
        default=None,
        ge=2,
        le=65_536,
        description="Images a process embeds at a time, in two passes; batch norm is then by chunk, a deviation.",
    )

    @field_validator("processes")
    @classmethod
    def _equal_parts(cls, processes: int, info: ValidationInfo) -> int:
        if (batch_size := info.data.get("batch_size", 0)) % processes:
            raise ValueError(f"batch_size ({batch_size}) must be divisible by processes ({processes})")
        return processes

    @model_validator(mode="before")
    @classmethod
    def _short_runs(cls, data: Any) -> Any:
        """In a run of less than 100 epochs both defaults are a tenth of it."""
        epochs = data.get("epochs") if isinstance(data, dict) else None
        if not isinstance(epochs, int) or not 1 <= epochs < 100:
            return data
        return {"warmup_epochs": epochs / 10, "weak_augmentation_epochs": epochs // 10} | data

    @field_validator("backbone")
    @classmethod
    def _whole_patches(cls, backbone: BackboneConfig, info: ValidationInfo) -> BackboneConfig:
        if (data := info.data.get("data")) is not None:
            backbone.check_image_size(data.image_size)
        return backbone

    @field_validator("warmup_epochs")
    @classmethod
    def _warmup_ends(cls, warmup_epochs: float, info: ValidationInfo) -> float:
        if warmup_epochs >= (epochs := info.data.get("epochs", math.inf)):
            raise ValueError(f"warmup_epochs ({warmup_epochs:g}) must be smaller than epochs ({epochs})")
        return warmup_epochs

    @field_validator("weak_augmentation_epochs")
    @classmethod
    def _weak_augmentation_ends(cls, weak_augmentation_epochs: int, info: ValidationInfo) -> int:
        if weak_augmentation_epochs > (epochs := info.data.get("epochs", math.inf)):
            raise ValueError(f"weak_augmentation_epochs ({weak_augmentation_epochs}) must not exceed epochs ({epochs})")
        return weak_augmentation_epochs

    @field_validator("evaluations")
    @classmethod
    def _checkpoints_will_be_there(
        cls, evaluations: tuple[EvaluationPlan, ...], info: ValidationInfo
    ) -> tuple[EvaluationPlan, ...]:
        kept = info.data.get("checkpoints", CheckpointConfig()).every_epochs
        for place, plan in enumerate(evaluations):
            if plan.when == "best" and info.data.get("knn_every_epochs") == 0:
                raise ValueError(f"entry {place}: when = best needs knn_every_epochs, which is 0")
            if plan.every_epochs is not None and plan.every_epochs % kept:
                raise ValueError(
                    f"entry {place}: every_epochs = {plan.every_epochs} must be a multiple of "
                    f"checkpoints.every_epochs = {kept}"
                )
        return evaluations

    @field_validator("loss")
    @classmethod
    def _loss_has_its_labels(cls, loss: LossConfig, info: ValidationInfo) -> LossConfig:
        if info.data.get("method") == "simclr" and (loss.finch_level != 1 or loss.exclude_mates):
            raise ValueError("finch_level and exclude_mates need weak labels, which simclr does not have")
        return loss

    @field_validator("multi_crop")
    @classmethod
    def _crops_fit(cls, multi_crop: MultiCropConfig, info: ValidationInfo) -> MultiCropConfig:
        if multi_crop.crops == 0:
            return multi_crop
        if multi_crop.neighbours >= (batch_size := info.data.get("batch_size", math.inf)):
            raise ValueError(f"neighbours ({multi_crop.neighbours}) must be fewer than batch_size ({batch_size})")
        if multi_crop.restrict_to_component and info.data.get("method") == "simclr":
            raise ValueError("restrict_to_component needs weak labels, which simclr does not have")
        data = info.data.get("data")
        if data and (side := multi_crop.side(data.image_size)) > data.image_size:
            raise ValueError(f"image_size ({side}) must not exceed the views' ({data.image_size})")
        backbone = info.data.get("backbone")
        if data and backbone and is_transformer(backbone.name) and side % backbone.patch_size:
            raise ValueError(f"image_size ({side}) must be divisible by backbone.patch_size ({backbone.patch_size})")
        return multi_crop

    @field_validator("queue_size")
    @classmethod
    def _queue_holds_whole_batches(cls, queue_size: int, info: ValidationInfo) -> int:
        if queue_size == 0:
            return queue_size
        if queue_size % (batch_size := info.data.get("batch_size", 1)):
            raise ValueError(f"queue_size ({queue_size}) must be a multiple of batch_size ({batch_size})")
        if info.data.get("method") == "simclr":
            raise ValueError("queue_size needs the weak-label head, which simclr does not have")
        if (loss := info.data.get("loss")) and loss.finch_level != 1:
            raise ValueError("queue_size is not defined together with loss.finch_level 2")
        return queue_size

    @field_validator("momentum_decay")
    @classmethod
    def _momentum_keys_are_detached(cls, momentum_decay: float | None, info: ValidationInfo) -> float | None:
        if momentum_decay is not None and (loss := info.data.get("loss")) and not loss.detach_keys:
            raise ValueError("momentum_decay makes keys without gradient, so loss.detach_keys must stay true")
        return momentum_decay

    @field_validator("micro_batch_size")
    @classmethod
    def _micro_batches_are_whole(cls, micro_batch_size: int | None, info: ValidationInfo) -> int | None:
        batch_size = info.data.get("batch_size")
        part = batch_size // info.data.get("processes", 1) if batch_size else 0
        if micro_batch_size is not None and part % micro_batch_size:
            raise ValueError(f"micro_batch_size ({micro_batch_size}) must divide each process's images ({part})")
        return micro_batch_size


class CheckpointFeatures(_Model):
    """Pooled features of a registered checkpoint's backbone."""

    kind: Literal["checkpoint"] = "checkpoint"
    checkpoint_id: UUID


class UntrainedFeatures(_Model):
    """Pooled features of a freshly initialised backbone: the floor every trained one must clear."""

    kind: Literal["untrained"] = "untrained"
    backbone: BackboneConfig = BackboneConfig()


class PixelFeatures(_Model):
    """The raw pixels themselves."""

    kind: Literal["pixels"] = "pixels"


Features = Annotated[CheckpointFeatures | UntrainedFeatures | PixelFeatures, Field(discriminator="kind")]


class EvaluateSpec(ProtocolSettings):
    """One set of features measured under some protocols; features are computed once."""

    spec_version: Literal[1] = 1
    data: DataConfig
    features: Features
    threads: int | None = Field(default=None, ge=1, le=512)

    @field_validator("features")
    @classmethod
    def _whole_patches(cls, features: Features, info: ValidationInfo) -> Features:
        if isinstance(features, UntrainedFeatures) and (data := info.data.get("data")) is not None:
            features.backbone.check_image_size(data.image_size)
        return features

    @field_validator("features")
    @classmethod
    def _can_be_tuned(cls, features: Features, info: ValidationInfo) -> Features:
        if isinstance(features, PixelFeatures) and "semi_supervised" in info.data.get("protocols", ()):
            raise ValueError("semi_supervised fine-tunes a network, and pixels have none")
        return features


Spec = PretrainSpec | EvaluateSpec
_ADAPTERS: dict[str, TypeAdapter[Any]] = {"pretrain": TypeAdapter(PretrainSpec), "evaluate": TypeAdapter(EvaluateSpec)}

# Pure dict-to-dict functions: UPCASTERS[n] turns a spec of version n into one of version n + 1.
UPCASTERS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def parse_spec(kind: Kind, data: dict[str, Any]) -> Spec:
    """Validate a spec as sent, lifting older versions first.

    Args:
        kind: which spec it is.
        data: JSON values only.

    Returns:
        The frozen spec with every default filled in.

    Raises:
        pydantic.ValidationError: one entry per wrong field.
    """
    version = data.get("spec_version", SPEC_VERSION)
    while isinstance(version, int) and version in UPCASTERS:
        data = UPCASTERS[version](dict(data))
        version = data["spec_version"]
    spec: Spec = _ADAPTERS[kind].validate_python(data)
    return spec


def resolve_spec(spec: Spec) -> dict[str, Any]:
    """The spec as JSON values with all defaults filled in: what a job row and a checkpoint keep."""
    return spec.model_dump(mode="json")
