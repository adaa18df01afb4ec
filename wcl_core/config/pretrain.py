"""The spec of a training run: its fields, and the rules between them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from wcl_core.config.fields import Device, Seed, SpecModel
from wcl_core.config.images import AugmentConfig, DataConfig, MultiCropConfig, weak_augmentation
from wcl_core.config.methods import check_ability, method_names, options_of
from wcl_core.config.network import BackboneConfig, HeadConfig, is_transformer
from wcl_core.config.protocols import EvaluationPlan, check_lists
from wcl_core.config.training import CheckpointConfig, LossConfig, OptimizerConfig

_Number = Annotated[int, Field(ge=2, le=65_536)]
_NUMBER: TypeAdapter[int] = TypeAdapter(_Number)


def _validated(size: Any, _: Any) -> int | Literal["auto"]:
    """Return a valid size; an invalid one has the error of a number, not one for each member of the union."""
    if isinstance(size, str) and size == "auto":
        return "auto"
    try:
        return _NUMBER.validate_python(size)
    except ValidationError as error:
        first = error.errors()[0]
        raise PydanticKnownError(first["type"], first.get("ctx")) from error  # type: ignore[arg-type]


Size = Annotated[_Number | Literal["auto"], WrapValidator(_validated)]


class PretrainSpec(SpecModel):
    """A self-supervised training run."""

    spec_version: Literal[2] = 2
    method: str = Field(
        default="wcl",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description="wcl, simclr, or a method installed as a plugin.",
        examples=["wcl"],
    )
    method_options: dict[str, JsonValue] = Field(
        default={}, description="Options of a method from a plugin; wcl and simclr have theirs in `loss`."
    )
    data: DataConfig
    seed: Seed = 0
    epochs: int = Field(default=100, ge=1, le=100_000, description="Passes over the train images.")
    batch_size: Size = Field(
        default=256,
        description=(
            "Images a step, over all processes. An incomplete last batch is dropped. `auto`: the run finds the largest "
            "batch that its device holds, at most 4096 and a sixteenth of the images."
        ),
    )
    backbone: BackboneConfig = BackboneConfig()
    weights: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description=(
            "SHA-256 digest of the weights that the training starts from: imported ones, or a full checkpoint, which "
            "also gives the heads that it has in common. Unset: random weights."
        ),
    )
    heads: HeadConfig = HeadConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    warmup_epochs: float = Field(
        default=10,
        ge=0,
        le=100_000,
        description="Epochs of linear warm-up before the cosine; unset, 10, but at most a tenth of all epochs.",
    )
    weak_augmentation_epochs: int = Field(
        default=10,
        ge=0,
        le=100_000,
        description="First epochs, which use `weak_augmentation`; unset, 10, but at most a tenth of all epochs.",
    )
    restarts: tuple[Annotated[int, Field(ge=1, le=100_000)], ...] = Field(
        default=(),
        max_length=100,
        description=(
            "Epochs after which the learning rate starts again: linear warm-up (as before, but at most a tenth of the "
            "epochs up to the next restart or the end), then the cosine. `wcl continue` sets it."
        ),
    )
    weak_augmentation: AugmentConfig = Field(default_factory=weak_augmentation)
    augmentation: AugmentConfig = AugmentConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    log_every_steps: int = Field(default=10, ge=1, le=100_000, description="Steps between two points of a curve.")
    knn_every_epochs: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description=(
            "Epochs between measurements of eval/knn_top1 on the test split, or without labels of eval/view_top1; 0: "
            "never."
        ),
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="`auto`: bfloat16 autocast on a GPU, float32 on a CPU."
    )
    device: Device = "auto"
    execution: Literal["auto", "eager", "compiled"] = Field(
        default="auto",
        description=(
            "`compiled`: steps by torch.compile, and on a GPU as one CUDA graph; `auto`: compiled on a GPU, unless the "
            "run is short or cannot be compiled; the run says why it is eager."
        ),
    )
    threads: int | None = Field(default=None, ge=1, le=512, description="CPU threads of each training process.")
    processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes on each machine that share each batch; unset, one for each GPU, or one on the CPU.",
    )
    nodes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Machines that train together, each with as many GPUs and processes; all start, or none.",
    )
    monitor_every_epochs: int = Field(
        default=1, ge=0, le=100_000, description="Epochs between measurements of the monitor batch; 0: never."
    )
    on_collapse: Literal["warn", "pause", "fail"] = Field(
        default="warn", description="Reaction if the monitors find a collapsed representation three times in a row."
    )
    on_non_finite: Literal["fail", "pause"] = Field(
        default="fail", description="Reaction if the loss or a weight is NaN or infinite."
    )
    evaluations: tuple[EvaluationPlan, ...] = Field(
        default=(), max_length=8, description="Planned evaluations of the checkpoints, each a job of its own."
    )

    multi_crop: MultiCropConfig = MultiCropConfig()
    queue_size: int = Field(
        default=0, ge=0, le=2**20, description="Images of past steps that also serve as neighbours and keys; 0: none."
    )
    momentum_decay: float | None = Field(
        default=None, ge=0, lt=1, description="Decay of a momentum encoder for keys and weak labels; unset: none."
    )
    micro_batch_size: Size | None = Field(
        default=None,
        description=(
            "Images that a process embeds at a time, to save memory; batch norm then sees these only. `auto`: the run "
            "finds the largest part that its device holds; none if it holds the whole batch."
        ),
    )

    @property
    def ends(self) -> tuple[int, ...]:
        """The epochs at which a cosine of the learning rate ends: each restart, and the last epoch."""
        return (*self.restarts, self.epochs)

    @property
    def num_ranks(self) -> int:
        """The number of processes on all machines together."""
        return self.nodes * self.processes

    @property
    def images_per_step(self) -> int:
        """The batch size; of a run that has yet to find it, the smallest one."""
        return self.batch_size if isinstance(self.batch_size, int) else max(2, self.num_ranks)

    @property
    def chunk_size(self) -> int | None:
        """The micro-batch size; None for none, and for a run that has yet to find it."""
        return self.micro_batch_size if isinstance(self.micro_batch_size, int) else None

    @property
    def view_bytes(self) -> int:
        """The bytes of a step's views in each process, as float32: a lower bound of the memory that a step needs."""
        crops, side = self.multi_crop, self.data.image_size
        pixels = 2 * side**2 + crops.crops * crops.side(side) ** 2
        return self.images_per_step // self.num_ranks * 3 * 4 * pixels

    @field_validator("method")
    @classmethod
    def _check_method(cls, method: str) -> str:
        if method not in (methods := method_names()):
            raise ValueError(f"there is no method {method}; expected one of {', '.join(methods)}")
        options_of(method)
        return method

    @field_validator("method_options")
    @classmethod
    def _check_options(cls, options: dict[str, JsonValue], info: ValidationInfo) -> dict[str, JsonValue]:
        if (method := info.data.get("method")) is None:
            return options
        return options_of(method).model_validate(options).model_dump(mode="json")

    @field_validator("processes")
    @classmethod
    def _check_processes(cls, processes: int, info: ValidationInfo) -> int:
        batch_size = info.data.get("batch_size", "auto")
        if batch_size != "auto" and batch_size % processes:
            raise ValueError(
                f"processes is {processes}, which does not divide batch_size = {batch_size}; "
                f"use a batch_size of {_multiple(batch_size, processes)}"
            )
        return processes

    @field_validator("nodes")
    @classmethod
    def _check_nodes(cls, nodes: int, info: ValidationInfo) -> int:
        batch_size, processes = info.data.get("batch_size", "auto"), info.data.get("processes", 1)
        if batch_size != "auto" and batch_size % (nodes * processes):
            raise ValueError(
                f"nodes is {nodes} with processes = {processes} on each, which together do not divide batch_size = "
                f"{batch_size}; use a batch_size of {_multiple(batch_size, nodes * processes)}"
            )
        return nodes

    @model_validator(mode="before")
    @classmethod
    def _shorten_defaults(cls, data: Any) -> Any:
        """Set both defaults to a tenth of a run that has less than 100 epochs."""
        epochs = data.get("epochs") if isinstance(data, dict) else None
        if not isinstance(epochs, int) or not 1 <= epochs < 100:
            return data
        return {"warmup_epochs": epochs / 10, "weak_augmentation_epochs": epochs // 10} | data

    @field_validator("backbone")
    @classmethod
    def _check_patches(cls, backbone: BackboneConfig, info: ValidationInfo) -> BackboneConfig:
        if (data := info.data.get("data")) is not None:
            backbone.check_image_size(data.image_size)
        return backbone

    @field_validator("warmup_epochs")
    @classmethod
    def _check_warmup(cls, warmup_epochs: float, info: ValidationInfo) -> float:
        if warmup_epochs >= (epochs := info.data.get("epochs", math.inf)):
            raise ValueError(f"warmup_epochs is {warmup_epochs:g}, but epochs is {epochs}; use fewer than {epochs}")
        return warmup_epochs

    @field_validator("weak_augmentation_epochs")
    @classmethod
    def _check_weak_augmentation(cls, weak_augmentation_epochs: int, info: ValidationInfo) -> int:
        if weak_augmentation_epochs > (epochs := info.data.get("epochs", math.inf)):
            raise ValueError(
                f"weak_augmentation_epochs is {weak_augmentation_epochs}, but epochs is {epochs}; use at most {epochs}"
            )
        return weak_augmentation_epochs

    @field_validator("restarts")
    @classmethod
    def _check_restarts(cls, restarts: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        ends = (*restarts, info.data.get("epochs", math.inf))
        if any(earlier >= later for earlier, later in pairwise(ends)):
            raise ValueError(f"expected epochs in ascending order, below epochs = {ends[-1]}")
        if restarts and (warmup_epochs := info.data.get("warmup_epochs", 0)) >= restarts[0]:
            raise ValueError(
                f"the first restart is after {restarts[0]} epochs, but warmup_epochs is {warmup_epochs:g}; restart "
                "later, or use fewer warmup_epochs"
            )
        return restarts

    @field_validator("evaluations")
    @classmethod
    def _check_evaluations(
        cls, evaluations: tuple[EvaluationPlan, ...], info: ValidationInfo
    ) -> tuple[EvaluationPlan, ...]:
        kept = info.data.get("checkpoints", CheckpointConfig()).every_epochs
        for place, plan in enumerate(evaluations):
            check_lists(plan.semi_supervised, plan.data or info.data.get("data"))
            if plan.when == "best" and info.data.get("knn_every_epochs") == 0:
                raise ValueError(f"entry {place}: when = best needs knn_every_epochs, which is 0; set it to 1 or more")
            if plan.every_epochs is not None and plan.every_epochs % kept:
                raise ValueError(
                    f"entry {place}: every_epochs is {plan.every_epochs}; expected a multiple of "
                    f"checkpoints.every_epochs = {kept}"
                )
        return evaluations

    @field_validator("loss")
    @classmethod
    def _check_loss(cls, loss: LossConfig, info: ValidationInfo) -> LossConfig:
        for name in ("finch_level", "exclude_mates"):
            if getattr(loss, name) != LossConfig.model_fields[name].default:
                check_ability(info.data.get("method"), "weak_labels", name)
        return loss

    @field_validator("multi_crop")
    @classmethod
    def _check_multi_crop(cls, multi_crop: MultiCropConfig, info: ValidationInfo) -> MultiCropConfig:
        if multi_crop.crops == 0:
            return multi_crop
        batch_size = info.data.get("batch_size", "auto")
        if batch_size != "auto" and multi_crop.neighbours >= batch_size:
            raise ValueError(
                f"neighbours is {multi_crop.neighbours}, but batch_size is {batch_size}; use fewer than {batch_size}"
            )
        check_ability(info.data.get("method"), "multi_crop", "crops")
        if multi_crop.restrict_to_component:
            check_ability(info.data.get("method"), "weak_labels", "restrict_to_component")
        data = info.data.get("data")
        if data and (side := multi_crop.side(data.image_size)) > data.image_size:
            raise ValueError(
                f"image_size is {side}, but data.image_size is {data.image_size}; use at most {data.image_size}"
            )
        backbone = info.data.get("backbone")
        if data and backbone and is_transformer(backbone.name) and side % backbone.patch_size:
            raise ValueError(
                f"image_size is {side}; expected a multiple of backbone.patch_size = {backbone.patch_size}"
            )
        return multi_crop

    @field_validator("queue_size")
    @classmethod
    def _check_queue(cls, queue_size: int, info: ValidationInfo) -> int:
        if queue_size == 0:
            return queue_size
        batch_size = info.data.get("batch_size", 1)
        if batch_size == "auto":
            raise ValueError(f"queue_size is {queue_size}, but batch_size is auto; use a batch_size of 256")
        if queue_size % batch_size:
            raise ValueError(
                f"queue_size is {queue_size}; expected a multiple of batch_size = {batch_size}, "
                f"such as {_multiple(queue_size, batch_size)}"
            )
        check_ability(info.data.get("method"), "weak_labels", "queue_size")
        if (loss := info.data.get("loss")) and loss.finch_level != 1:
            raise ValueError(f"queue_size is {queue_size}, but loss.finch_level is 2; use 0, or a finch_level of 1")
        return queue_size

    @field_validator("momentum_decay")
    @classmethod
    def _check_momentum(cls, momentum_decay: float | None, info: ValidationInfo) -> float | None:
        if momentum_decay is None:
            return momentum_decay
        check_ability(info.data.get("method"), "momentum", "momentum_decay")
        if (loss := info.data.get("loss")) and not loss.detach_keys:
            raise ValueError(
                "momentum_decay makes keys without gradient, but loss.detach_keys is false; leave one of the two out"
            )
        return momentum_decay

    @field_validator("micro_batch_size")
    @classmethod
    def _check_micro_batch(
        cls, micro_batch_size: int | Literal["auto"] | None, info: ValidationInfo
    ) -> int | Literal["auto"] | None:
        batch_size = info.data.get("batch_size")
        if batch_size == "auto" and micro_batch_size is not None:
            raise ValueError(f"micro_batch_size is {micro_batch_size}, but batch_size is auto; use a batch_size of 256")
        num_ranks = info.data.get("nodes", 1) * info.data.get("processes", 1)
        part = batch_size // num_ranks if isinstance(batch_size, int) else 0
        if isinstance(micro_batch_size, int) and part % micro_batch_size:
            largest = max(size for size in range(1, min(micro_batch_size, part) + 1) if part % size == 0)
            raise ValueError(
                f"micro_batch_size is {micro_batch_size}; expected a divisor of the {part} images of each process, "
                f"such as {largest}"
            )
        return micro_batch_size


def _multiple(number: int, factor: int) -> int:
    """Return the multiple of `factor` that is closest to a number, and not 0."""
    return max(1, (number + factor // 2) // factor) * factor
