"""The part of a spec about images: the dataset, the random views and the small crops."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, ValidationInfo, field_validator

from wcl_core.config.fields import DatasetName, SpecModel


class DataConfig(SpecModel):
    """The dataset and the size of its images."""

    name: DatasetName
    image_size: int = Field(default=32, ge=8, le=512, description="Side of the square views, in pixels.")
    max_corrupt_share: float = Field(
        default=0.01, ge=0, le=1, description="The run fails if a larger share of the image files cannot be decoded."
    )
    held_out_share: float = Field(
        default=0.0,
        ge=0,
        le=0.5,
        description=(
            "Share of each class's train images that replace the test split, for choosing hyper-parameters. They are "
            "not trained on, no classifier learns from them, and the test split itself is not used. Without labels: "
            "share of all images that are not trained on, and that the view accuracy is measured on."
        ),
    )


def proposed_image_size(median: Sequence[int]) -> int:
    """Return the size to train at: the largest usual one that images of the median size fill.

    Args:
        median: width and height in pixels.
    """
    side = min(median)
    return max((size for size in (32, 64, 96, 128, 160, 224) if size <= side), default=max(8, side - side % 8))


def held_out_count(images: int, share: float) -> int:
    """Return how many of a class's train images are held out: the rounded share, but one at least of two or more.

    Args:
        images: train images of the class.
        share: `data.held_out_share`, in [0, 1); 0 holds out none.
    """
    return max(1, round(share * images)) if share and images > 1 else 0


class AugmentConfig(SpecModel):
    """Random augmentation of a view; all probabilities are per image."""

    scale_min: float = Field(default=0.08, gt=0, le=1, description="Smallest crop as a share of the image's area.")
    flip_probability: float = Field(default=0.5, ge=0, le=1, description="Probability of a horizontal flip.")
    jitter_probability: float = Field(default=0.8, ge=0, le=1, description="Probability of the colour jitter.")
    brightness: float = Field(default=0.8, ge=0, le=1, description="Colour jitter: the largest change of brightness.")
    contrast: float = Field(default=0.8, ge=0, le=1, description="Colour jitter: the largest change of contrast.")
    saturation: float = Field(default=0.8, ge=0, le=1, description="Colour jitter: the largest change of saturation.")
    hue: float = Field(default=0.2, ge=0, le=0.5, description="Colour jitter: the largest change of hue, in turns.")
    grayscale_probability: float = Field(default=0.2, ge=0, le=1, description="Probability of a grey image.")
    blur_probability: float = Field(default=0.5, ge=0, le=1, description="Probability of a Gaussian blur.")


def weak_augmentation() -> AugmentConfig:
    """Return the weaker augmentation that the released code uses in the first epochs [C]."""
    return AugmentConfig(scale_min=0.2, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)


class MultiCropConfig(SpecModel):
    """Small crops, pulled to their image and its nearest neighbours; SimCLR uses the image only."""

    crops: int = Field(default=0, ge=0, le=16, description="Number of small crops of each image; 0 turns them off.")
    image_size: int | None = Field(
        default=None,
        ge=8,
        le=512,
        description="Side of the crops, in pixels; unset, 0.43 of the views' side, rounded to a multiple of 8.",
    )
    scale_min: float = Field(default=0.05, gt=0, le=1, description="Smallest crop as a share of the image's area.")
    scale_max: float = Field(default=0.2, gt=0, le=1, description="Largest crop as a share of the image's area.")
    neighbours: int = Field(default=4, ge=1, le=64, description="K, the number of nearest neighbours of each image.")
    own_share: float = Field(
        default=0.5, ge=0, le=1, description="Weight of the image itself; its neighbours share the rest."
    )
    weight: float = Field(default=1.0, ge=0, le=100, description="gamma, the weight of the multi-crop loss.")
    ramp_fraction: float = Field(
        default=0.1, ge=0, le=1, description="Share of all steps over which the neighbours' weight rises from 0."
    )
    restrict_to_component: bool = Field(
        default=False, description="Use only those of the K neighbours that have the image's weak label."
    )

    @field_validator("scale_max")
    @classmethod
    def _check_scales(cls, scale_max: float, info: ValidationInfo) -> float:
        if scale_max < (scale_min := info.data.get("scale_min", 0)):
            raise ValueError(f"scale_max is {scale_max:g}, but scale_min is {scale_min:g}; use at least {scale_min:g}")
        return scale_max

    def side(self, image_size: int) -> int:
        """Return the side of the crops for views of `image_size` pixels: 0.43 of it to a multiple of 8, at least 8."""
        return self.image_size or max(8, 8 * round(0.43 * image_size / 8))
