"""Presets: complete specs by name; recipes of the paper and of its code, and small ones of this project.

The learning rate scales with the global batch by the rule in the spec, so a preset also suits another `batch_size`:
square root for LARS [C], linear for SGD [D].  Each `wcl-*` has a `simclr-*` twin that differs in the method only.  Like
`config`, this module does not import torch.  [P] is the paper, [C] its released code, [D] defined by this project.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from wcl_core.config import (
    AugmentConfig,
    BackboneConfig,
    CheckpointConfig,
    DataConfig,
    HeadConfig,
    LossConfig,
    OptimizerConfig,
    PretrainSpec,
)
from wcl_core.recommendation import Images, Machine, recommend


@dataclass(frozen=True)
class Preset:
    """A spec, and one line on its purpose."""

    description: str
    spec: PretrainSpec


# ResNet-18 takes 2.4 times as long for such images, measured on a CPU.
_TINY = "network tiny, not of torchvision: wcl_core.load_backbone loads it"


def presets() -> dict[str, PretrainSpec]:
    """Return the specs by name, small ones first."""
    return {name: preset.spec for name, preset in described_presets().items()}


@cache
def described_presets() -> dict[str, Preset]:
    """Return all presets by name, small ones first."""
    wcl = {
        "wcl-digits": Preset(f"Handwritten digits of 8x8 pixels, a minute on a CPU; {_TINY} [D]", _digits()),
        "wcl-cifar10": Preset("CIFAR-10 with a ResNet-18 on one GPU, 200 epochs [D]", _cifar10()),
        "wcl-small": Preset("ImageNet with a ResNet-50 on one GPU, batch 256 [D]", _imagenet(100, batch=256)),
    }
    for epochs in (100, 200, 800):
        paper = f"ImageNet, ResNet-50, batch 4096, {epochs} epochs, heads 2048/128 as the paper states [P]"
        code = f"ImageNet, ResNet-50, batch 4096, {epochs} epochs, heads 4096/256 and LARS as released [C]"
        wcl[f"wcl-paper-{epochs}"] = Preset(f"{paper}; no multi-crop", _imagenet(epochs))
        wcl[f"wcl-code-{epochs}"] = Preset(code, _as_released(epochs))
    small = {
        "digits-cpu": Preset(f"For first steps, the same as wcl-digits; {_TINY}", _digits()),
        "cifar10-cpu": Preset(f"CIFAR-10 on a CPU: no result; {_TINY} [D]", _cifar10_cpu()),
    }
    photos = {name: Preset(description, _photos(*choice)) for name, (description, choice) in _PHOTOS.items()}
    twins = {name.replace("wcl-", "simclr-", 1): _twin(name, preset) for name, preset in wcl.items()}
    twins |= {f"simclr-{name}": _twin(name, preset) for name, preset in photos.items()}
    return small | photos | wcl | twins


# Fixed choices of `wcl_core.recommendation`: images, their side, minutes, and whether there is a GPU.
_PHOTOS: dict[str, tuple[str, tuple[int, int, float, bool]]] = {
    "photos-quick": (
        "Some hundred photos at 64 px, ResNet-18: about 20 minutes on 2 cores [D]",
        (448, 64, 17.3, False),
    ),
    "photos": ("Some thousand photos at 64 px, ResNet-18: about an hour on 2 cores [D]", (4_000, 64, 60, False)),
    "photos-large": ("Many photos at 224 px, ResNet-50, on one GPU [D]", (50_000, 224, 600, True)),
}


def _photos(count: int, side: int, minutes: float, is_gpu: bool) -> PretrainSpec:
    """Return the recipe for photos under the name `photos`; `wcl recommend` fits it to a dataset."""
    recipe = recommend("photos", Images(count, (side, side)), Machine(is_gpu), minutes)
    return PretrainSpec.model_validate(recipe.spec)


def _twin(name: str, preset: Preset) -> Preset:
    """Return the preset for SimCLR (Chen et al., ICML 2020): the loss's first term and one head, all else equal."""
    return Preset(f"The SimCLR twin of {name}: {preset.description}", _with(preset.spec, method="simclr"))


def _with(spec: PretrainSpec, **changes: object) -> PretrainSpec:
    return PretrainSpec.model_validate(dict(spec) | changes)


def _digits() -> PretrainSpec:
    """Return the recipe for the digits; temperatures and rate were the best on held-out images for WCL and SimCLR."""
    plain = AugmentConfig(
        flip_probability=0,
        brightness=0.4,
        contrast=0.4,
        saturation=0,
        hue=0,
        grayscale_probability=0,
        blur_probability=0,
    )
    return PretrainSpec(
        data=DataConfig(name="digits", image_size=8),
        epochs=60,
        batch_size=256,
        backbone=BackboneConfig(name="tiny", stem="small", width=16),
        heads=HeadConfig(hidden_dim=128, output_dim=64),
        loss=LossConfig(temperature=0.4, weak_temperature=0.2),
        optimizer=_sgd(0.12),
        warmup_epochs=6,
        weak_augmentation_epochs=6,
        weak_augmentation=plain.model_copy(update={"scale_min": 0.4}),
        augmentation=plain.model_copy(update={"scale_min": 0.3}),
        checkpoints=CheckpointConfig(every_epochs=10, first_epoch=True),
        log_every_steps=5,
        knn_every_epochs=10,
    )


def _sgd(learning_rate: float) -> OptimizerConfig:
    return OptimizerConfig(name="sgd", learning_rate=learning_rate, scaling="linear", weight_decay=5e-4)


def _cifar10_cpu() -> PretrainSpec:
    return PretrainSpec(
        data=DataConfig(name="cifar10", image_size=32),
        epochs=10,
        batch_size=256,
        backbone=BackboneConfig(name="tiny", stem="stride2", width=32),
        heads=HeadConfig(hidden_dim=512, output_dim=128),
        optimizer=_sgd(0.06),
        warmup_epochs=1,
        weak_augmentation_epochs=1,
        augmentation=AugmentConfig(
            scale_min=0.2, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur_probability=0
        ),
        knn_every_epochs=1,
    )


def _cifar10() -> PretrainSpec:
    return _with(
        _cifar10_cpu(),
        epochs=200,
        batch_size=512,
        backbone=BackboneConfig(name="resnet18", stem="small"),
        heads=HeadConfig(),
        warmup_epochs=10,
        weak_augmentation_epochs=10,
        checkpoints=CheckpointConfig(every_epochs=10),
        knn_every_epochs=10,
    )


def _imagenet(epochs: int, batch: int = 4096) -> PretrainSpec:
    """Return the recipe for ImageNet with the paper's heads; LARS at 0.075 sqrt(B)."""
    return PretrainSpec(
        data=DataConfig(name="imagenet", image_size=224),
        epochs=epochs,
        batch_size=batch,
        backbone=BackboneConfig(name="resnet50", stem="imagenet"),
        heads=HeadConfig(hidden_dim=2048, output_dim=128),
        optimizer=OptimizerConfig(name="lars", learning_rate=0.075, scaling="sqrt"),
        warmup_epochs=10,
        weak_augmentation_epochs=10,
        checkpoints=CheckpointConfig(every_epochs=10),
    )


def _as_released(epochs: int) -> PretrainSpec:
    optimizer = OptimizerConfig(name="lars", learning_rate=0.075, scaling="sqrt", lars_exclusion="official-names")
    return _with(_imagenet(epochs), heads=HeadConfig(hidden_dim=4096, output_dim=256), optimizer=optimizer)
