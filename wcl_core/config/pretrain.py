"""The spec of a training run, and the rules between its parts."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from wcl_core.config.fields import Seed, SpecModel
from wcl_core.config.images import AugmentConfig, DataConfig, MultiCropConfig, weak_augmentation
from wcl_core.config.methods import check_ability, method_names, options_of
from wcl_core.config.network import BackboneConfig, HeadConfig, is_transformer
from wcl_core.config.protocols import EvaluationPlan, check_lists
from wcl_core.config.training import CheckpointConfig, LossConfig, OptimizerConfig


class PretrainSpec(SpecModel):
    """A self-supervised training run."""

    spec_version: Literal[1] = 1
    method: str = Field(
        default="wcl",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description="wcl, simclr, or a method that is installed as a plugin.",
        examples=["wcl"],
    )
    method_options: dict[str, JsonValue] = Field(
        default={}, description="What a plugin's method may be told; wcl and simclr have their options in `loss`."
    )
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

    @property
    def view_bytes(self) -> int:
        """Bytes of a step's views in each process, as float32: the least that a step needs, whatever the network."""
        crops, side = self.multi_crop, self.data.image_size
        pixels = 2 * side**2 + crops.crops * crops.side(side) ** 2
        return self.batch_size // self.processes * 3 * 4 * pixels

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in (known := method_names()):
            raise ValueError(f"there is no method {method}; expected one of {', '.join(known)}")
        options_of(method)
        return method

    @field_validator("method_options")
    @classmethod
    def _of_the_method(cls, options: dict[str, JsonValue], info: ValidationInfo) -> dict[str, JsonValue]:
        if (method := info.data.get("method")) is None:
            return options
        return options_of(method).model_validate(options).model_dump(mode="json")

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
            check_lists(plan.semi_supervised, plan.data or info.data.get("data"))
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
        for name in ("finch_level", "exclude_mates"):
            if getattr(loss, name) != LossConfig.model_fields[name].default:
                check_ability(info.data.get("method"), "weak_labels", name)
        return loss

    @field_validator("multi_crop")
    @classmethod
    def _crops_fit(cls, multi_crop: MultiCropConfig, info: ValidationInfo) -> MultiCropConfig:
        if multi_crop.crops == 0:
            return multi_crop
        if multi_crop.neighbours >= (batch_size := info.data.get("batch_size", math.inf)):
            raise ValueError(f"neighbours ({multi_crop.neighbours}) must be fewer than batch_size ({batch_size})")
        check_ability(info.data.get("method"), "multi_crop", "crops")
        if multi_crop.restrict_to_component:
            check_ability(info.data.get("method"), "weak_labels", "restrict_to_component")
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
        check_ability(info.data.get("method"), "weak_labels", "queue_size")
        if (loss := info.data.get("loss")) and loss.finch_level != 1:
            raise ValueError("queue_size is not defined together with loss.finch_level 2")
        return queue_size

    @field_validator("momentum_decay")
    @classmethod
    def _momentum_keys_are_detached(cls, momentum_decay: float | None, info: ValidationInfo) -> float | None:
        if momentum_decay is None:
            return momentum_decay
        check_ability(info.data.get("method"), "momentum", "momentum_decay")
        if (loss := info.data.get("loss")) and not loss.detach_keys:
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
