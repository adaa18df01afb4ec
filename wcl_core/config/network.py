"""What is trained: the backbone and its projection heads."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from wcl_core import plugins
from wcl_core.config.fields import SpecModel

RESIDUAL = ("tiny", "resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2", "wide_resnet101_2")
TRANSFORMERS = ("vit_small", "vit_base")


def is_transformer(backbone: str) -> bool:
    """Whether a backbone cuts its images into patches and has no stem."""
    return backbone in TRANSFORMERS


class BackboneConfig(SpecModel):
    """A network without its classifier."""

    name: str = Field(
        default="tiny",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description=(
            f"One of {', '.join(RESIDUAL + TRANSFORMERS)}, or a backbone that is installed as a plugin. `tiny` is a "
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
        known = (*RESIDUAL, *TRANSFORMERS, *plugins.names("wcl.backbones"))
        if name not in known:
            raise ValueError(f"there is no backbone {name}; expected one of {', '.join(known)}")
        return name

    @field_validator("patch_size")
    @classmethod
    def _only_transformers_have_patches(cls, patch_size: int, info: ValidationInfo) -> int:
        if patch_size != 16 and (name := info.data.get("name")) in RESIDUAL:
            raise ValueError(f"{name} has no patches; only {', '.join(TRANSFORMERS)} and plugins have")
        return patch_size

    @field_validator("variant")
    @classmethod
    def _only_plugins_have_variants(cls, variant: str | None, info: ValidationInfo) -> str | None:
        if variant is not None and (name := info.data.get("name")) in RESIDUAL + TRANSFORMERS:
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


class HeadConfig(SpecModel):
    """Both projection heads: Linear-BN-ReLU-Linear-BN-ReLU-Linear, separate weights."""

    hidden_dim: int = Field(default=2048, ge=2, le=16384)
    output_dim: int = Field(default=128, ge=2, le=4096)
