"""How a network learns: the loss, the optimiser, and when its state is kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from wcl_core.config.fields import SpecModel


class LossConfig(SpecModel):
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


class OptimizerConfig(SpecModel):
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


class CheckpointConfig(SpecModel):
    """When the run writes a checkpoint, and which the service keeps; the last epoch always writes one."""

    every_epochs: int = Field(default=1, ge=1, le=100_000)
    first_epoch: bool = Field(default=False, description="Also keep the state after the first epoch.")
    keep_last: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="How many of the newest are kept; unset, all. Pinned and needed ones stay whatever this says.",
    )
    keep_best: int = Field(
        default=0, ge=0, le=1000, description="With keep_last: how many of the best eval/knn_top1 are kept, too."
    )
