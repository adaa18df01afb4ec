"""The part of a spec about the network: the backbone and its projection heads."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from wcl_core import plugins
from wcl_core.config.fields import SpecModel

RESIDUAL = ("tiny", "resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2", "wide_resnet101_2")
TRANSFORMERS = ("vit_small", "vit_base")
# Blocks of each stage, of bottlenecks also the factor by which the 3x3 convolution is wider than usual.
BASIC = {"tiny": (1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
BOTTLENECK = {
    "resnet50": ((3, 4, 6, 3), 1),
    "resnet101": ((3, 4, 23, 3), 1),
    "wide_resnet50_2": ((3, 4, 6, 3), 2),
    "wide_resnet101_2": ((3, 4, 23, 3), 2),
}
VISION = {"vit_small": (12, 6, 384), "vit_base": (12, 12, 768)}  # layers, heads, channels


def is_transformer(backbone: str) -> bool:
    """Return whether a backbone is a transformer: it cuts images into patches and has no stem."""
    return backbone in TRANSFORMERS


class BackboneConfig(SpecModel):
    """The backbone: a network without its classifier."""

    name: str = Field(
        default="tiny",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description=(
            f"One of {', '.join(RESIDUAL + TRANSFORMERS)}, or a backbone installed as a plugin. `tiny` is a "
            "ResNet of three stages for CPUs; the others are torchvision's."
        ),
        examples=["tiny"],
    )
    stem: Literal["small", "stride2", "imagenet"] = Field(
        default="small",
        description=(
            "First layers of a ResNet. `small`: 3x3 convolution without stride or pooling; `stride2`: 3x3 with "
            "stride 2; `imagenet`: 7x7 with stride 2, then max pooling. Transformers ignore it."
        ),
    )
    width: int = Field(
        default=64, ge=4, le=256, description="Channels of the first stage of `tiny`; other backbones have 64."
    )
    patch_size: int = Field(
        default=16,
        ge=2,
        le=64,
        description="Side of a transformer's patches, in pixels; it must divide data.image_size.",
    )
    variant: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$",
        description="Name of the network, for a plugin that provides several.",
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        backbones = (*RESIDUAL, *TRANSFORMERS, *plugins.names("wcl.backbones"))
        if name not in backbones:
            raise ValueError(f"there is no backbone {name}; expected one of {', '.join(backbones)}")
        return name

    @field_validator("patch_size")
    @classmethod
    def _check_patch_size(cls, patch_size: int, info: ValidationInfo) -> int:
        if patch_size != 16 and (name := info.data.get("name")) in RESIDUAL:
            raise ValueError(
                f"patch_size is {patch_size}, but {name} has no patches; leave it out, or choose "
                f"{' or '.join(TRANSFORMERS)}"
            )
        return patch_size

    @field_validator("variant")
    @classmethod
    def _check_variant(cls, variant: str | None, info: ValidationInfo) -> str | None:
        if variant is not None and (name := info.data.get("name")) in RESIDUAL + TRANSFORMERS:
            raise ValueError(f"variant is {variant}, but {name} has no variants; leave it out, or choose a plugin")
        return variant

    def check_image_size(self, image_size: int) -> None:
        """Raise if images of this size cannot be cut into whole patches.

        Raises:
            ValueError: the side of the patches does not divide the side of the images; the message names both fields.
        """
        if is_transformer(self.name) and image_size % self.patch_size:
            raise ValueError(
                f"backbone.patch_size is {self.patch_size}, which does not divide data.image_size = {image_size}; "
                f"{_fitting_patches(image_size)}"
            )

    @field_validator("width")
    @classmethod
    def _check_width(cls, width: int, info: ValidationInfo) -> int:
        if (name := info.data.get("name", "tiny")) != "tiny" and width != 64:
            raise ValueError(
                f"width is {width}, but {name} has a width of 64; leave it out, or choose the tiny backbone"
            )
        return width


def _fitting_patches(image_size: int) -> str:
    sides = [side for side in range(2, min(64, image_size // 2) + 1) if image_size % side == 0]
    if not sides:
        return f"use an image_size of {16 * max(1, round(image_size / 16))}"
    return f"use a patch_size of {min(sides, key=lambda side: abs(side - 16))}"


class HeadConfig(SpecModel):
    """The shape of both projection heads: Linear-BN-ReLU-Linear-BN-ReLU-Linear, each with its own weights."""

    hidden_dim: int = Field(default=2048, ge=2, le=16384, description="Width of the two hidden layers.")
    output_dim: int = Field(default=128, ge=2, le=4096, description="Dimension of the embeddings.")
