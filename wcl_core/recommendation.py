"""A recipe that fits a dataset: size, backbone, batch, epochs and augmentation, each with its reason.

    images (number, size, classes, colours) ─┐
    device, memory, minutes ─────────────────┼─► a spec, reasons, steps, time, memory
    content: photos, drawings or overhead ───┘

The numbers are rules of thumb of this project, not results of a search [D].  The speeds are of ResNets on 2 CPU cores
and of an H100, made smaller; a dry run replaces them by the speed of a similar run.  This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

from wcl_core.config import AugmentConfig, DataConfig, PretrainSpec
from wcl_core.config.images import held_out_count, proposed_image_size
from wcl_core.config.memory import SHARE, largest_batch, process_bytes
from wcl_core.text import counted

Content = Literal["photos", "drawings", "overhead"]
CONTENTS: tuple[Content, ...] = get_args(Content)
Length = Literal["quick", "standard", "thorough"]
LEARNING_RATE = 0.06  # for SGD and a batch of 256, as the preset for CIFAR-10
MIN_STEPS = 1_000
_HOPELESS_STEPS = 100
_STEPS_PER_EPOCH = 7  # at least, so that batches differ from epoch to epoch
SMALLEST_BATCH = 8
_MOST_EPOCHS = 1_000
_SMALLER_SIDES = (192, 160, 128, 96, 64, 48, 32)  # to which images shrink for a short training
_SMALLEST_HURRIED_BATCH = 32  # to which a batch shrinks for one
_IN_MEMORY = 2 << 30  # bytes of images that a run keeps on its device
_FEWEST_TO_HOLD_OUT = 500  # images without labels, from which some of them measure the view accuracy
_MOST_HELD_OUT = 512  # as many as it measures
_STEM = "its weights load into torchvision and timm by name"
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
    """The machine that trains: its memory in bytes, None where unknown, and its free CPU cores if it has no GPU."""

    is_gpu: bool
    memory: int | None = None
    cores: float = 2


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
        seconds: of training, by the speed of earlier runs or a rule of thumb.
        memory: bytes that the process needs; None where unknown.
        hope: what one may expect of it, as a sentence.
        notes: what to know before, as clauses.
        warnings: why the training hardly learns, as clauses; a dry run of the spec has the same ones.
        further_epochs: that a trial, which is too short to learn, lacks of `MIN_STEPS`; 0 for other trainings.
    """

    spec: dict[str, Any]
    choices: list[Choice]
    steps: int
    seconds: float
    memory: int | None
    hope: str
    notes: list[str] = field(default_factory=list)
    further_epochs: int = 0
    warnings: list[str] = field(default_factory=list)


def recommend(
    name: str,
    images: Images,
    machine: Machine,
    minutes: float | None = None,
    content: Content = "photos",
    speed: Callable[[PretrainSpec], float | None] = lambda _: None,
    length: Length = "standard",
) -> Recommendation:
    """Return a recipe for a dataset whose training takes at most its minutes, by what is known of the speed.

    Where the minutes are too short for `MIN_STEPS`, the images get smaller, then the network, then the batch; where
    that is not enough, the steps get fewer.  Only one epoch is always trained.

    Args:
        name: of the dataset.
        minutes: that the training may take; by default those of `length`.
        content: `photos`; `drawings`, also digits and text, which may not be mirrored or recoloured; `overhead`:
            microscopy and satellite images, whose colours have a meaning.
        speed: returns the images a second of a spec by earlier runs; None where they say nothing of it, and a rule of
            thumb counts.
        length: a usual budget of minutes and steps, for a training without `minutes`.

    Raises:
        ValueError: there are too few images to train on.
    """
    if images.count < 2 * SMALLEST_BATCH:
        raise ValueError(f"{name} has {images.count} train images, too few to learn from; expected some hundreds")
    budget = minutes or LENGTHS[length].minutes
    alternatives = (_plan(name, choices, images, machine, speed) for choices in _alternatives(images, machine, budget))
    usual = plan = next(alternatives)
    while plan.steps(budget) < MIN_STEPS and (cheaper := next(alternatives, None)):
        if cheaper.batch < plan.batch and not plan.epochs(budget):
            break  # a smaller batch makes no epoch shorter
        plan = cheaper
    most = _MOST_EPOCHS if minutes else max(plan.enough, round(LENGTHS[length].steps / plan.per_epoch))
    epochs = max(1, min(plan.epochs(budget), most, _MOST_EPOCHS))
    steps = plan.per_epoch * epochs
    reason = "a usual number" if plan.epochs(budget) > epochs else f"what about {counted(budget, 'minute')} allow"
    choices = [
        *plan.choices,
        Choice("epochs", epochs, f"{steps:,} steps in all, {plan.per_epoch:,} an epoch: {reason}"),
        *_augmentation(images, content, plan.spec.data.image_size),
    ]
    notes = list(_too_short(usual, plan, budget, steps))
    if content == "photos" and (images.is_grey or plan.spec.data.image_size < 32):
        notes.append("for digits, text or drawings, which may not be mirrored, use the content drawings")
    if images.num_classes < 2:
        notes.append("without labels the view accuracy says whether it learns, and a map whether alike images are near")
    return Recommendation(
        _spec(name, choices),
        choices,
        steps,
        plan.seconds(steps),
        plan.memory(images, machine),
        _hope(images.count, has_labels=images.num_classes > 1),
        notes,
        max(0, plan.enough - epochs),
        [few_steps(plan.per_epoch, epochs)] if steps < MIN_STEPS else [],
    )


def few_steps(per_epoch: int, epochs: int, smaller: str = "") -> str:
    """Return the warning about a training of fewer steps than `MIN_STEPS`, as a clause.

    Args:
        per_epoch: steps an epoch.
        epochs: of the training.
        smaller: another way to more steps, which is named first.
    """
    steps, enough = per_epoch * epochs, math.ceil(MIN_STEPS / per_epoch)
    use = f"use at least {MIN_STEPS:,}, that is {smaller}epochs = {enough}"
    if steps < _HOPELESS_STEPS:
        return f"{counted(steps, 'step')} in all, too few to learn anything; {use}"
    later = "" if smaller else f", or continue it for {counted(enough - epochs, 'epoch')}"
    return f"{counted(steps, 'step')} in all, too few to learn much, so this is a trial; {use}{later}"


@dataclass(frozen=True)
class _Plan:
    """What decides how long a step takes.

    Attributes:
        choices: of the size of images, the network and the batch.
        spec: with these choices, of one epoch.
        batch: images a step.
        per_epoch: steps an epoch.
        speed: images a second.
    """

    choices: list[Choice]
    spec: PretrainSpec
    batch: int
    per_epoch: int
    speed: float

    @property
    def enough(self) -> int:
        """The fewest epochs that have `MIN_STEPS`."""
        return math.ceil(MIN_STEPS / self.per_epoch)

    def seconds(self, steps: int) -> float:
        return steps * self.batch / self.speed

    def epochs(self, minutes: float) -> int:
        """Return the whole epochs in so many minutes; a twentieth of an epoch beyond them is no reason for one less."""
        return int(60 * minutes / self.seconds(self.per_epoch) + 0.05)

    def steps(self, minutes: float) -> int:
        return self.per_epoch * self.epochs(minutes)

    def memory(self, images: Images, machine: Machine) -> int | None:
        in_memory = images.count if 3 * self.spec.data.image_size**2 * images.count <= _IN_MEMORY else 0
        return process_bytes(self.spec, self.batch, is_gpu=machine.is_gpu, images=in_memory)


def _plan(
    name: str,
    choices: list[Choice],
    images: Images,
    machine: Machine,
    speed: Callable[[PretrainSpec], float | None],
) -> _Plan:
    def spec() -> PretrainSpec:
        return PretrainSpec.model_validate(_spec(name, [*choices, Choice("epochs", 1, "")]))

    values = {each.field: each.value for each in choices}
    side, batch, parsed = values["data.image_size"], values["batch_size"], spec()
    if machine.memory and (most := largest_batch(parsed, int(SHARE * machine.memory), is_gpu=machine.is_gpu)) < batch:
        reason = f"a batch of {most} is the largest that the memory holds at once"
        choices = [*choices, Choice("micro_batch_size", "auto", reason)]
        parsed = spec()
    by_rule = _speed((values["backbone.name"], values["backbone.stem"]), side, machine)
    trained_on = images.count - held_out_count(images.count, parsed.data.held_out_share)
    return _Plan(choices, parsed, batch, trained_on // batch, speed(parsed) or by_rule)


def _alternatives(images: Images, machine: Machine, minutes: float) -> Iterator[list[Choice]]:
    """Yield choices of size, network and batch: first those that fit the images best, then cheaper and cheaper ones."""
    size, unreadable = _size(images, machine), [*_unreadable(images), *_held_out(images)]
    network, batch = _network(images, machine, size.value), _batch(images, machine)
    yield [size, *unreadable, *network, batch]
    short = f"1,000 steps would take longer than {counted(minutes, 'minute')}"
    sizes = [side for side in _SMALLER_SIDES if (64 if machine.is_gpu else 32) <= side < size.value]
    for stage in ("resnet50", "resnet18") if network[0].value == "resnet50" else (network[0].value,):
        if stage != network[0].value:
            network = [Choice("backbone.name", stage, f"with a larger network, {short}"), *network[1:]]
            yield [size, *unreadable, *network, batch]
        for side in [side for side in sizes if side < size.value and (stage != "resnet50" or side >= 128)]:
            size = Choice("data.image_size", side, f"with larger images, {short}; small details are lost")
            if side < 64 and network[-1].reason == _STEM:
                reason = f"{_STEM}; small keeps more of images below 64 pixels, and takes about 15 times as long"
                network = [*network[:-1], replace(network[-1], reason=reason)]
            yield [size, *unreadable, *network, batch]
    while batch.value > _SMALLEST_HURRIED_BATCH:
        batch = Choice("batch_size", batch.value // 2, f"with a larger batch, {short}")
        yield [size, *unreadable, *network, batch]


def _too_short(usual: _Plan, plan: _Plan, minutes: float, steps: int) -> Iterator[str]:
    """Yield what the minutes are too short for."""
    budget = counted(minutes, "minute")
    if usual is not plan:
        unit = "one epoch" if usual.enough == 1 else f"{MIN_STEPS:,} steps"
        network = "" if usual.spec.backbone.name == plan.spec.backbone.name else f"{usual.spec.backbone.name}, "
        sizes = f"{network}images of {usual.spec.data.image_size} pixels and batches of {usual.batch}"
        most = usual.seconds(usual.per_epoch * usual.enough)
        yield f"{unit} with {sizes} would take {_time(most)}, longer than {budget}"
    if plan.epochs(minutes) < 1:
        longer = f"one epoch of {counted(plan.per_epoch * plan.batch, 'image')} takes {_time(plan.seconds(steps))} here"
        yield f"{longer}, longer than {budget}; for a trial, use fewer images"
    elif steps < MIN_STEPS:
        whole = plan.enough * plan.per_epoch
        yield f"{counted(whole, 'step')} take {_time(plan.seconds(whole))}, longer than {budget}"


def _time(seconds: float) -> str:
    minutes = max(1, math.ceil(seconds / 60))
    return f"about {counted(minutes, 'minute') if minutes < 120 else counted(round(minutes / 60, 1), 'hour')}"


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


def _held_out(images: Images) -> list[Choice]:
    """Return the share of images without labels that only the view accuracy uses; none where few or very many images.

    A run keeps images that are held out in memory, with all others.
    """
    share = min(0.1, round(_MOST_HELD_OUT / images.count, 3))
    most = _IN_MEMORY // (3 * max(_SMALLER_SIDES) ** 2)
    if images.num_classes > 1 or images.largest is not None or not _FEWEST_TO_HOLD_OUT <= images.count <= most:
        return []
    reason = f"{held_out_count(images.count, share):,} images measure whether it learns; they are not trained on"
    return [Choice("data.held_out_share", share, reason)]


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
    stem = Choice("backbone.stem", "imagenet", _STEM)
    return [Choice("backbone.name", name, _loads(images)), stem]


def _loads(images: Images) -> str:
    return f"{images.count:,} images are {'many' if images.count >= _MANY else 'too few for a larger network'}"


def usual_speed(spec: PretrainSpec, machine: Machine) -> float | None:
    """Return the images a second of a spec on a machine by a rule of thumb; None for a network without one."""
    backbone = (spec.backbone.name, spec.backbone.stem)
    return _speed(backbone, spec.data.image_size, machine) if backbone in _COSTS else None


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


def _spec(name: str, choices: list[Choice]) -> dict[str, Any]:
    """Return the fields nested, with those that follow from them."""
    from wcl_core.config.overlay import with_fields

    values = {each.field: each.value for each in choices}
    epochs, tiny = values["epochs"], values["backbone.name"] == "tiny"
    views = {key.removeprefix("augmentation."): each for key, each in values.items() if key.startswith("augmentation.")}
    fixed: dict[str, Any] = {
        "data.name": name,
        "method": "wcl",
        "optimizer": {"name": "sgd", "learning_rate": LEARNING_RATE, "scaling": "linear", "weight_decay": 5e-4},
        "weak_augmentation": views | {"scale_min": views.get("scale_min", 0.2)},
        "warmup_epochs": epochs / 10,
        "weak_augmentation_epochs": epochs // 10,
        "checkpoints": {"every_epochs": max(1, epochs // 10), "keep_last": 3},
        "monitor_every_epochs": max(1, epochs // 20),
        "knn_every_epochs": max(1, epochs // 20),
    }
    if tiny:
        fixed |= {"backbone.width": 16, "heads": {"hidden_dim": 128, "output_dim": 64}}
    return with_fields({}, {"data.name": name} | values | fixed)


def _hope(count: int, *, has_labels: bool) -> str:
    if count < 200:
        return "Little: so few images teach hardly more than an untrained network has. Add images; they need no labels"
    if count < 1_000:
        if not has_labels:
            return (
                "Features a little better than those of the untrained network, or as good. Look at the map, and at "
                "neighbours of some images, before you trust them"
            )
        return (
            "Some points of kNN accuracy above the untrained network, or no difference that few test images can show. "
            "Compare with it before you trust the result"
        )
    if count < _MANY:
        return "Features clearly better than those of the untrained network; few labels then go a long way"
    return "Features that a linear classifier on few labels can build on; more epochs still help"
