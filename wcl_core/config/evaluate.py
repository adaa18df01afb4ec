"""The spec of an evaluation: one set of features under some protocols."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, ValidationInfo, field_validator

from wcl_core.config.fields import Device, SpecModel
from wcl_core.config.images import DataConfig
from wcl_core.config.network import BackboneConfig
from wcl_core.config.protocols import ProtocolSettings, check_lists


class CheckpointFeatures(SpecModel):
    """Pooled features of a registered checkpoint's backbone."""

    kind: Literal["checkpoint"] = "checkpoint"
    checkpoint_id: UUID


class UntrainedFeatures(SpecModel):
    """Pooled features of a freshly initialised backbone: the baseline for trained ones."""

    kind: Literal["untrained"] = "untrained"
    backbone: BackboneConfig = BackboneConfig()


class PixelFeatures(SpecModel):
    """The raw pixels as features."""

    kind: Literal["pixels"] = "pixels"


Features = Annotated[CheckpointFeatures | UntrainedFeatures | PixelFeatures, Field(discriminator="kind")]


class EvaluateSpec(ProtocolSettings):
    """An evaluation: one set of features, computed once, and the protocols that measure it."""

    spec_version: Literal[2] = 2
    data: DataConfig
    features: Features
    device: Device = "auto"
    threads: int | None = Field(default=None, ge=1, le=512, description="CPU threads; PyTorch's default unless set.")

    @field_validator("data")
    @classmethod
    def _check_label_lists(cls, data: DataConfig, info: ValidationInfo) -> DataConfig:
        check_lists(info.data.get("semi_supervised"), data)
        return data

    @field_validator("features")
    @classmethod
    def _check_patches(cls, features: Features, info: ValidationInfo) -> Features:
        if isinstance(features, UntrainedFeatures) and (data := info.data.get("data")) is not None:
            features.backbone.check_image_size(data.image_size)
        return features

    @field_validator("features")
    @classmethod
    def _check_fine_tuning(cls, features: Features, info: ValidationInfo) -> Features:
        if isinstance(features, PixelFeatures) and "semi_supervised" in info.data.get("protocols", ()):
            raise ValueError(
                "semi_supervised fine-tunes a network, and pixels have none; remove it from protocols, or choose "
                "features of kind checkpoint or untrained"
            )
        return features
