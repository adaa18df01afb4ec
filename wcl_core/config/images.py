"""Which images, and what random views and small crops are made of them."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from wcl_core.config.fields import DatasetName, SpecModel


class DataConfig(SpecModel):
    """Which images, at which size."""

    name: DatasetName
    image_size: int = Field(default=32, ge=8, le=512, description="Side of the square training views, in pixels.")
    max_corrupt_share: float = Field(
        default=0.01, ge=0, le=1, description="The run fails when a larger share of the image files cannot be decoded."
    )
    held_out_share: float = Field(
        default=0.0,
        ge=0,
        le=0.5,
        description=(
            "Share of each class's train images that stand for the test split, which is then not looked at: neither "
            "trained on nor known to a probe, for choosing hyper-parameters."
        ),
    )


def held_out_count(images: int, share: float) -> int:
    """Return how many of a class's train images are held out: the rounded share, but one at least of two or more.

    Args:
        images: train images of the class.
        share: `data.held_out_share`, in [0, 1); 0 holds out none.
    """
    return max(1, round(share * images)) if share and images > 1 else 0


class AugmentConfig(SpecModel):
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


class MultiCropConfig(SpecModel):
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
