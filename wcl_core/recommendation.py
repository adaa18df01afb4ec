"""A recipe that fits a dataset: size, backbone, batch, epochs and augmentation, each with its reason.

    images (number, size, classes, colours) ─┐
    device, memory, minutes ─────────────────┼─► a spec, reasons, steps, time, memory
    content: photos, drawings or overhead ───┘

The numbers are rules of thumb of this project, not results of a search [D].  The speeds are of ResNets on 2 CPU cores
and of an H100, made smaller; a dry run replaces them by the speed of a similar run.  This module does not import torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from wcl_core.config import AugmentConfig, DataConfig, PretrainSpec
from wcl_core.config.images import proposed_image_size
from wcl_core.config.memory import SHARE, largest_batch, process_bytes

Content = Literal["photos", "drawings", "overhead"]
CONTENTS: tuple[Content, ...] = get_args(Content)
Length = Literal["quick", "standard", "thorough"]
LEARNING_RATE = 0.06  # for SGD and a batch of 256, as the preset for CIFAR-10
MIN_STEPS = 1_000
_STEPS_PER_EPOCH = 7  # at least, so that batches differ from epoch to epoch
SMALLEST_BATCH = 8
_MOST_EPOCHS = 1_000
_IN_MEMORY = 2 << 30  # bytes of images that a run keeps on its device
_MANY = 20_000  # images from which a larger network pays off on a GPU
_CORE_FLOPS, _GPU_FLOPS = 5.5e10, 4e13  # that training reaches, with views and losses
# Multiplications of a forward pass of one image, with the side of the image, by backbone and stem.
_COSTS = {
    ("tiny", "small"): (6.1e7, 32),
    ("resnet18", "imagenet"): (1.82e9, 224),
    ("resnet18", "small"): (5.6e8, 32),
    ("resnet50", "imagenet"): (4.1e9, 224),
}


class Budget(NamedTuple):
    """The most that a training of some length takes."""

    minutes: float
    steps: int


LENGTHS: dict[Length, Budget] = {
    "quick": Budget(10, 2_000),
    "standard": Budget(60, 20_000),
    "thorough": Budget(480, 100_000),
}


@dataclass(frozen=True)
class Images:
    """The images that a recipe is for.

    Attributes:
        count: train images.
        median: width and height in pixels; None where unknown.
        num_classes: 0 or 1 without labels.
        is_grey: whether no image has colours.
        unreadable: image files that cannot be read.
        largest: side that views cannot exceed, of a packed dataset; None where any size is possible.
    """

    count: int
    median: tuple[int, int] | None = None
    num_classes: int = 0
    is_grey: bool = False
    largest: int | None = None
    unreadable: int = 0


@dataclass(frozen=True)
class Machine:
    """The machine that trains: its memory in bytes, None where unknown, and its CPU cores if it has no GPU."""

    is_gpu: bool
    memory: int | None = None
    cores: int = 2


@dataclass(frozen=True)
class Choice:
    """One field of the recipe by its dotted name, with its value and the reason for it."""

    field: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Recommendation:
    """A recipe.

    Attributes:
        spec: as a client sends it.
        choices: the fields with their reasons.
        steps: in all.
        seconds: of training, by a rule of thumb.
        memory: bytes that the process needs; None where unknown.
        hope: what one may expect of it, as a sentence.
        notes: what to know before, as clauses.
        trial_epochs: of a trial within the minutes, where they are too short to learn; None where they are not.
    """

    spec: dict[str, Any]
    choices: list[Choice]
    steps: int
    seconds: float
    memory: int | None
    hope: str
    notes: list[str] = field(default_factory=list)
    trial_epochs: int | None = None


def recommend(
    name: str,
    images: Images,
    machine: Machine,
    minutes: float | None = None,
    content: Content = "photos",
    images_per_second: float | None = None,
    length: Length = "standard",
) -> Recommendation:
    """Return a recipe for a dataset.

    Args:
        name: of the dataset.
        minutes: that the training may take; by default those of `length`.
        content: `photos`; `drawings`, also digits and text, which may not be mirrored or recoloured; `overhead`:
            microscopy and satellite images, whose colours have a meaning.
        images_per_second: of a similar run; by default a rule of thumb.
        length: a usual budget of minutes and steps, for a training without `minutes`.

    Raises:
        ValueError: there are too few images to train on.
    """
    if images.count < 2 * SMALLEST_BATCH:
        raise ValueError(f"{name} has {images.count} train images, too few to learn from; expected some hundreds")
    choices = [_size(images, machine), *_unreadable(images)]
    side = choices[0].value
    choices += _network(images, machine, side)
    network = {each.field: each.value for each in choices}
    backbone = (network["backbone.name"], network["backbone.stem"])
    speed = images_per_second or _speed(backbone, side, machine)
    choices.append(_batch(images, machine))
    batch = choices[-1].value
    usual = LENGTHS[length]
    allowed = 60 * (minutes or usual.minutes) * speed / batch
    per_epoch = images.count // batch
    epochs = _epochs(per_epoch, allowed, minutes or usual.minutes, math.inf if minutes else usual.steps)
    choices += [epochs, *_augmentation(images, content, side)]
    spec = _spec(name, choices, has_labels=images.num_classes > 1)
    parsed = PretrainSpec.model_validate(spec)
    if machine.memory and (most := largest_batch(parsed, int(SHARE * machine.memory), is_gpu=machine.is_gpu)) < batch:
        spec["micro_batch_size"] = "auto"
        reason = f"a batch of {most} is the largest that the memory holds at once"
        choices.append(Choice("micro_batch_size", "auto", reason))
    steps = per_epoch * epochs.value
    seconds = steps * batch / speed
    notes: list[str] = []
    trial_epochs = None
    if minutes and seconds > 1.2 * 60 * minutes:
        budget = f"{minutes:g} minute{'' if minutes == 1 else 's'}"
        trial_epochs = max(1, int(allowed / per_epoch))
        notes.append(
            f"{MIN_STEPS:,} steps take longer than {budget} here, and fewer teach little; for a trial, set epochs to "
            f"{trial_epochs:,}, and continue the training afterwards"
        )
    if content == "photos" and (images.is_grey or side < 32):
        notes.append("for digits, text or drawings, which may not be mirrored, use the content drawings")
    if images.num_classes < 2:
        notes.append("without labels no accuracy can be measured; a map shows the neighbours of each image")
    in_memory = images.count if 3 * side**2 * images.count <= _IN_MEMORY else 0
    memory = process_bytes(parsed, batch, is_gpu=machine.is_gpu, images=in_memory)
    hope = _hope(images.count, has_labels=images.num_classes > 1)
    return Recommendation(spec, choices, steps, seconds, memory, hope, notes, trial_epochs)


def _size(images: Images, machine: Machine) -> Choice:
    median = images.median or (32, 32)
    fitting = proposed_image_size(median)
    most = 64 if not machine.is_gpu else (224 if images.count >= _MANY else 128)
    side = min(fitting, most, images.largest or most)
    reason = f"the median image has {median[0]}x{median[1]} pixels"
    if side < fitting:
        device = "a GPU" if machine.is_gpu else "a CPU"
        reason += f"; more than {side} would make a step slow on {device}"
    return Choice("data.image_size", side, reason)


def _unreadable(images: Images) -> list[Choice]:
    total = images.unreadable + images.count
    if images.unreadable <= DataConfig.model_fields["max_corrupt_share"].default * total:
        return []
    share = math.ceil(1000 * images.unreadable / total) / 1000
    reason = f"{images.unreadable:,} of {total:,} image files cannot be read, and are left out"
    return [Choice("data.max_corrupt_share", share, reason)]


def _network(images: Images, machine: Machine, side: int) -> list[Choice]:
    if side < 32:
        reason = "larger networks have no use for images this small; load_backbone of this project loads it"
        return [
            Choice("backbone.name", "tiny", reason),
            Choice("backbone.stem", "small", "it keeps small images whole"),
        ]
    if machine.is_gpu and side < 64:
        reason = "images below 64 pixels lose too much in the stem of ImageNet"
        return [Choice("backbone.name", "resnet18", _loads(images)), Choice("backbone.stem", "small", reason)]
    name = "resnet50" if machine.is_gpu and images.count >= _MANY else "resnet18"
    stem = Choice("backbone.stem", "imagenet", "its weights load into torchvision and timm by name")
    return [Choice("backbone.name", name, _loads(images)), stem]


def _loads(images: Images) -> str:
    return f"{images.count:,} images are {'many' if images.count >= _MANY else 'too few for a larger network'}"


def _speed(backbone: tuple[str, str], side: int, machine: Machine) -> float:
    """Return the images a second: two views, forward and backward."""
    cost, reference = _COSTS[backbone]
    flops = 12 * cost * (side / reference) ** 2
    return (_GPU_FLOPS if machine.is_gpu else _CORE_FLOPS * machine.cores) / flops


def _batch(images: Images, machine: Machine) -> Choice:
    most = 256 if machine.is_gpu else 64
    batch = max(SMALLEST_BATCH, min(most, 2 ** int(math.log2(images.count / _STEPS_PER_EPOCH))))
    reason = "neighbours are looked for within a batch, so large ones are better"
    if batch < most:
        reason += f"; at least {_STEPS_PER_EPOCH} batches an epoch, so that they differ from epoch to epoch"
    return Choice("batch_size", batch, reason)


def _epochs(per_epoch: int, allowed: float, minutes: float, most: float) -> Choice:
    """Return the epochs of as many steps as the minutes allow, but at most `most`."""
    steps = max(MIN_STEPS, min(most, allowed))
    epochs = min(_MOST_EPOCHS, max(math.ceil(MIN_STEPS / per_epoch), round(steps / per_epoch)))
    of_time = f"what about {minutes:g} minutes allow" if steps == allowed else "a usual number"
    if steps == MIN_STEPS:
        of_time = "fewer teach little"
    return Choice("epochs", epochs, f"{per_epoch * epochs:,} steps in all, {per_epoch:,} an epoch: {of_time}")


def _augmentation(images: Images, content: Content, side: int) -> list[Choice]:
    usual = {"scale_min": 0.2, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    usual |= {"flip_probability": 0.5, "grayscale_probability": 0.2, "blur_probability": 0.5 if side >= 64 else 0.0}
    reason = "crops, mirror images and colours that keep what a photo shows"
    if content == "drawings":
        usual |= {"scale_min": 0.3, "flip_probability": 0.0, "saturation": 0.0, "hue": 0.0, "blur_probability": 0.0}
        usual |= {"grayscale_probability": 0.0}
        reason = "a mirrored digit or letter is another one, and colours mean little"
    elif content == "overhead":
        usual |= {"scale_min": 0.3, "saturation": 0.2, "hue": 0.02, "grayscale_probability": 0.0}
        reason = "colours of stains and bands have a meaning, so they change little"
    if images.is_grey:
        usual |= {"saturation": 0.0, "hue": 0.0, "grayscale_probability": 0.0}
        reason += "; the images are grey"
    return [Choice(f"augmentation.{name}", value, reason) for name, value in usual.items() if value != _DEFAULTS[name]]


_DEFAULTS = AugmentConfig().model_dump()


def _spec(name: str, choices: list[Choice], *, has_labels: bool) -> dict[str, Any]:
    """Return the fields nested, with those that follow from them; kNN accuracy needs labels."""
    from wcl_core.config.overlay import with_fields

    values = {each.field: each.value for each in choices}
    epochs, tiny = values["epochs"], values["backbone.name"] == "tiny"
    views = {key.removeprefix("augmentation."): each for key, each in values.items() if key.startswith("augmentation.")}
    fixed: dict[str, Any] = {
        "data.name": name,
        "optimizer": {"name": "sgd", "learning_rate": LEARNING_RATE, "scaling": "linear", "weight_decay": 5e-4},
        "weak_augmentation": views | {"scale_min": views.get("scale_min", 0.2)},
        "warmup_epochs": epochs / 10,
        "weak_augmentation_epochs": epochs // 10,
        "checkpoints": {"every_epochs": max(1, epochs // 10), "keep_last": 3},
        "monitor_every_epochs": max(1, epochs // 20),
    }
    if has_labels:
        fixed["knn_every_epochs"] = max(1, epochs // 20)
    if tiny:
        fixed |= {"backbone.width": 16, "heads": {"hidden_dim": 128, "output_dim": 64}}
    return with_fields({}, {"data.name": name} | values | fixed)


def _hope(count: int, *, has_labels: bool) -> str:
    if count < 200:
        return "Little: so few images teach hardly more than an untrained network has. Add images; they need no labels"
    if count < 1_000:
        check = "Compare with it" if has_labels else "Look at the map, and at neighbours of some images,"
        return (
            "Some points of kNN accuracy above the untrained network: 490 photos of clothes gained about six. "
            f"{check} before you trust the result"
        )
    if count < _MANY:
        return "Features clearly better than those of the untrained network; few labels then go a long way"
    return "Features that a linear classifier on few labels can build on; more epochs still help"
