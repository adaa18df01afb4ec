"""Recipes that fit a dataset, a device and a budget of minutes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from jobs.advice import advice
from wcl_core.config import PretrainSpec
from wcl_core.recommendation import CONTENTS, Content, Images, Machine, Recommendation, recommend

CPU, GPU = Machine(False, 8 << 30), Machine(True, 80 << 30)


def spec_of(recipe: Recommendation) -> PretrainSpec:
    return PretrainSpec.model_validate(recipe.spec)


def value(recipe: Recommendation, name: str) -> Any:
    return next((choice.value for choice in recipe.choices if choice.field == name), None)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("minutes", [None, 1, 30, 600])
@pytest.mark.parametrize("machine", [CPU, GPU, Machine(False)])
@pytest.mark.parametrize(
    "images",
    [
        Images(490, (104, 120), 4),
        Images(16, (9, 12)),
        Images(1437, (8, 8), 10, is_grey=True),
        Images(60_000, (32, 32), 10),
        Images(1_300_000, (500, 400), 1000, largest=96),
    ],
)
def test_every_recipe_is_a_spec_that_can_learn_and_gives_its_reasons(
    images: Images, machine: Machine, minutes: float | None, content: Content
) -> None:
    recipe = recommend("photos", images, machine, minutes, content)
    spec = spec_of(recipe)
    assert len(advice(spec, images.count, None)) == (recipe.further_epochs > 0)
    assert recipe.seconds <= 1.05 * 60 * (minutes or 60) or spec.epochs == 1, "the budget is kept"
    assert spec.data.image_size <= min((*(images.median or ()), images.largest or 512))
    assert recipe.spec["method"] == "wcl", "a file of the spec says it"
    assert (spec.data.name, recipe.steps) == ("photos", images.count // spec.images_per_step * spec.epochs)
    assert all(choice.reason for choice in recipe.choices)
    assert recipe.seconds > 0
    if content == "drawings":
        assert (spec.augmentation.flip_probability, spec.weak_augmentation.flip_probability) == (0, 0)
    if images.is_grey or content == "drawings":
        assert (spec.augmentation.hue, spec.augmentation.saturation) == (0, 0)


def test_size_backbone_and_batch_follow_from_images_and_device() -> None:
    small = recommend("photos", Images(490, (104, 120), 4), CPU)
    assert [value(small, name) for name in ("data.image_size", "backbone.name", "backbone.stem", "batch_size")] == [
        *(64, "resnet18", "imagenet", 64),
    ]
    large = recommend("photos", Images(100_000, (500, 400), 4), GPU)
    assert [value(large, name) for name in ("data.image_size", "backbone.name", "batch_size")] == [224, "resnet50", 256]
    assert value(recommend("photos", Images(60, (104, 120)), CPU), "batch_size") == 8
    assert value(recommend("photos", Images(60_000, (32, 32), 10), GPU), "backbone.stem") == "small"


def test_the_minutes_are_kept_by_smaller_images_then_batches_then_fewer_steps() -> None:
    images = Images(4_000, (128, 128), 4)
    names = ("data.image_size", "batch_size")
    for minutes, size, batch in ((120, 64, 64), (30, 64, 64), (12, 48, 64), (5, 32, 64), (3, 32, 32)):
        recipe = recommend("photos", images, CPU, minutes)
        assert [value(recipe, name) for name in names] == [size, batch]
        assert recipe.seconds <= 1.05 * 60 * minutes
        assert (recipe.steps >= 1_000, recipe.further_epochs) == (True, 0)
        whole = "1,000 steps with images of 64 pixels and batches of 64 would take about 19 minutes, longer than"
        assert [note for note in recipe.notes if "longer" in note] == (
            [] if minutes > 19 else [f"{whole} {minutes} minutes"]
        )
    hurried = recommend("photos", images, CPU, 1)
    assert (hurried.steps, hurried.further_epochs, hurried.spec["epochs"]) == (375, 5, 3)
    assert hurried.seconds <= 63
    assert hurried.notes[1] == "1,000 steps take about 3 minutes, longer than 1 minute"
    assert hurried.warnings == [
        "375 steps in all, too few to learn much, so this is a trial; use at least 1,000, that is epochs = 8, or "
        "continue it for 5 epochs"
    ]
    quick = recommend("photos", images, CPU, length="quick")
    assert quick.seconds <= 1.05 * 600


def test_one_epoch_is_always_trained_and_a_large_network_gives_way() -> None:
    many = Images(1_300_000, (500, 400), 1000)
    recipe = recommend("photos", many, CPU, 5)
    assert (value(recipe, "epochs"), value(recipe, "data.image_size"), value(recipe, "batch_size")) == (1, 32, 64)
    assert recipe.notes == [
        "one epoch with images of 64 pixels and batches of 64 would take about 5.9 hours, longer than 5 minutes",
        "one epoch of 1,299,968 images takes about 88 minutes here, longer than 5 minutes; for a trial, use fewer "
        "images",
    ]
    hurried = recommend("photos", many, GPU, 5)
    assert [value(hurried, name) for name in ("backbone.name", "data.image_size")] == ["resnet18", 128]
    assert "with resnet50, images of 224 pixels" in hurried.notes[0]


def test_without_labels_it_plans_and_promises_nothing_that_needs_them() -> None:
    with_labels, without = (recommend("photos", Images(900, (104, 139), count), CPU) for count in (2, 0))
    assert min(spec_of(each).knn_every_epochs for each in (with_labels, without)) > 0, "also without labels"
    shares = [spec_of(recommend("photos", Images(n, (104, 139)), CPU)).data.held_out_share for n in (499, 900, 10_000)]
    assert shares == [0, 0.1, 0.051]
    assert (value(with_labels, "data.held_out_share"), value(without, "data.held_out_share")) == (None, 0.1)
    assert without.steps % ((900 - 90) // value(without, "batch_size")) == 0, "epochs of the images that are trained on"
    assert "Compare with it before" in with_labels.hope
    assert "neighbours of some images, before" in without.hope


def test_a_batch_that_the_memory_does_not_hold_is_embedded_in_parts() -> None:
    recipe = recommend("photos", Images(100_000, (500, 400), 4), Machine(True, 8 << 30))
    assert spec_of(recipe).micro_batch_size == "auto"
    assert value(recommend("photos", Images(100_000, (500, 400), 4), GPU), "micro_batch_size") is None


def test_files_that_cannot_be_read_and_the_speed_of_a_similar_run_count() -> None:
    assert value(recommend("photos", Images(61, (104, 124), unreadable=1), CPU), "data.max_corrupt_share") == 0.017
    assert value(recommend("photos", Images(610, (104, 124), unreadable=1), CPU), "data.max_corrupt_share") is None
    images = Images(40_000, (128, 128), 4)
    slow = recommend("photos", images, CPU, 1_200, speed=lambda spec: 10 if spec.data.image_size == 64 else None)
    assert 36_000 < slow.seconds <= 72_000
    assert slow.seconds == slow.steps * 64 / 10
    assert slow.steps < recommend("photos", images, CPU, 1_200).steps


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="photos has 15 train images, too few to learn from"):
        recommend("photos", Images(15, (64, 64)), CPU)


@pytest.mark.process
def test_a_recommendation_needs_no_torch() -> None:
    code = "import sys, wcl_core.recommendation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
