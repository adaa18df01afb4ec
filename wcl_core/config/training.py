"""The part of a spec about training: the loss, the optimiser, and the checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from wcl_core.config.fields import SpecModel


class LossConfig(SpecModel):
    """The loss, L = L_NCE + weak_weight * L_swap; SimCLR has only the first term."""

    temperature: float = Field(default=0.1, ge=0.01, le=10, description="Temperature of the instance loss.")
    weak_temperature: float = Field(default=0.1, ge=0.01, le=10, description="Temperature of the weak-label loss.")
    weak_weight: float = Field(default=1.0, ge=0, le=100, description="beta, the weight of the weak-label loss.")
    weak_ramp_fraction: float = Field(
        default=0.0, ge=0, le=1, description="Share of all steps over which weak_weight rises linearly from 0."
    )
    detach_keys: bool = Field(default=True, description="Whether the keys of the weak-label loss carry no gradient.")
    batch_norm_views: Literal["separate", "joint"] = Field(
        default="separate",
        description="`separate`: batch norm normalises each view alone, as in the paper; `joint`: both views together.",
    )
    decoupled: bool = Field(
        default=False, description="Leave the positive out of the denominator of the instance loss (decoupled loss)."
    )
    finch_level: int = Field(
        default=1,
        ge=1,
        le=2,
        description="1: weak labels are components of the nearest-neighbour graph; 2: components of components.",
    )
    exclude_mates: bool = Field(
        default=False, description="After the ramp, drop same-label images from the keys of the instance loss."
    )


class OptimizerConfig(SpecModel):
    """The optimiser; its base rate is `learning_rate`, scaled by the global batch size as `scaling` says."""

    name: Literal["lars", "sgd", "adamw"] = Field(
        default="lars", description="`adamw` decouples the weight decay; it needs rates of about 0.0001."
    )
    learning_rate: float = Field(
        default=0.075, gt=0, le=100, description="Learning rate before scaling; at most 0.01 for `adamw`."
    )
    scaling: Literal["sqrt", "linear", "none"] = Field(
        default="sqrt",
        description="For a global batch of B: `sqrt`: rate * sqrt(B); `linear`: rate * B / 256; `none`: rate.",
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of LARS and SGD.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), description="Decay rates of the two running means of AdamW; others ignore them."
    )
    weight_decay: float = Field(default=1e-6, ge=0, le=1, description="Weight decay.")
    trust_coefficient: float = Field(default=1e-3, gt=0, le=1, description="Trust coefficient of LARS.")
    lars_exclusion: Literal["one-dimensional", "official-names"] = Field(
        default="one-dimensional",
        description=(
            "Parameters that LARS neither decays nor scales: all of one dimension, or, as in the released code, those "
            "whose name contains `bn` or `bias`."
        ),
    )

    @field_validator("learning_rate")
    @classmethod
    def _check_rate_of_adamw(cls, learning_rate: float, info: ValidationInfo) -> float:
        # The default is LARS's: with AdamW it would move every weight by a tenth at each step.
        if info.data.get("name") == "adamw" and learning_rate > 0.01:
            raise ValueError(f"learning_rate is {learning_rate:g}, which is too large for adamw; use at most 0.01")
        return learning_rate


class CheckpointConfig(SpecModel):
    """The checkpoints that the run writes and the service keeps; the run always writes one after the last epoch."""

    every_epochs: int = Field(default=1, ge=1, le=100_000, description="Write a checkpoint after every N epochs.")
    first_epoch: bool = Field(default=False, description="Also write a checkpoint after the first epoch.")
    keep_last: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Number of newest checkpoints to keep; by default all. Pinned and needed ones are always kept.",
    )
    keep_best: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="With keep_last: number of checkpoints with the best eval/knn_top1 to keep as well.",
    )
