"""Held-out images: their choice, that the test split is not used, and that results name the share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.wcl_core import small
from wcl_core.config import EvaluateSpec, PretrainSpec, parse_spec
from wcl_core.data import DataError, ImageData, with_held_out
from wcl_core.data.held_out import held_out
from wcl_core.evaluation.run import evaluate
from wcl_core.reporter import MemoryReporter
from wcl_core.training.pretrain import pretrain

SHARE = 0.25


@pytest.fixture(scope="module")
def data() -> ImageData:
    return small.few_digits()


def test_a_share_of_each_class_moves_from_train_to_test(data: ImageData) -> None:
    changed = with_held_out(data, SHARE)

    before, after = (split.labels.bincount(minlength=len(data.classes)) for split in (data.train, changed.test))
    assert after.tolist() == [round(SHARE * count) for count in before.tolist()]
    assert len(changed.train) + len(changed.test) == len(data.train)
    both = torch.cat((changed.train.images, changed.test.images))
    assert sorted(image.sum().item() for image in both) == sorted(image.sum().item() for image in data.train.images)
    assert len({data.train.digest, data.test.digest, changed.train.digest, changed.test.digest}) == 4
    assert with_held_out(data, 0) is data


def test_the_held_out_images_depend_on_the_labels_only() -> None:
    labels = torch.tensor([0, 1] * 20 + [2])

    chosen = held_out(labels, 0.2)

    assert torch.equal(chosen, held_out(labels.clone(), 0.2))
    assert labels[chosen].bincount(minlength=3).tolist() == [4, 4, 0]
    assert held_out(torch.tensor([0, 0]), 0.01).sum() == 1


def test_packed_data_and_classes_of_one_image_cannot_be_held_out(data: ImageData) -> None:
    mapped = dataclasses.replace(data, train=dataclasses.replace(data.train, is_mapped=True))
    with pytest.raises(DataError, match="held_out_share.*packed"):
        with_held_out(mapped, SHARE)
    alone = dataclasses.replace(data.train, labels=torch.zeros_like(data.train.labels))
    with pytest.raises(DataError, match="without an image in one of the two splits"):
        with_held_out(dataclasses.replace(data, train=alone), SHARE)


def test_without_labels_a_share_of_all_images_is_held_out(data: ImageData) -> None:
    images = dataclasses.replace(data.train, labels=torch.full_like(data.train.labels, -1))
    none = dataclasses.replace(images, images=images.images[:0], labels=images.labels[:0])
    without = dataclasses.replace(data, train=none, test=none, classes=(), unlabelled=images)
    changed = with_held_out(without, SHARE)
    count = round(SHARE * len(images))
    assert (len(changed.test), len(changed.pretraining)) == (count, len(images) - count)
    both = torch.cat((changed.test.images, changed.pretraining.images)).flatten(1).double().sum(dim=1)
    assert torch.equal(both.sort().values, images.images.flatten(1).double().sum(dim=1).sort().values)


@pytest.mark.slow
def test_training_and_evaluation_do_not_use_the_test_split(data: ImageData, tmp_path: Path) -> None:
    """With another test split in its place every byte and number stays the same."""
    other = dataclasses.replace(data.test, images=data.test.images.flip(0), digest="0" * 64)
    results = []
    for number, each in enumerate((data, dataclasses.replace(data, test=other))):
        training, measured = MemoryReporter(), MemoryReporter()
        fields = small.fields(data={"name": "digits", "image_size": 8, "held_out_share": SHARE}, knn_every_epochs=1)
        spec = parse_spec("pretrain", fields)
        assert isinstance(spec, PretrainSpec)
        folder = tmp_path / str(number)
        assert pretrain(spec, training, dataset=each, output_dir=folder) == "succeeded"
        saved = training.of("checkpoint")[-1]
        path = folder / saved["path"]
        assert evaluate(evaluation(SHARE), measured, data=each, checkpoint_path=path) == "succeeded"
        results.append((saved["sha256"], small.curves(training.records), measured.of("evaluation")))

    assert results[0] == results[1]
    record = results[0][2][0]
    assert record["params"]["held_out_share"] == SHARE
    assert record["split_digest"] == with_held_out(data, SHARE).test.digest
    assert record["n"] == len(with_held_out(data, SHARE).test)


def test_held_out_images_are_not_trained_on(data: ImageData, tmp_path: Path) -> None:
    """With other pixels in them the weights stay the same; with other pixels in the rest they do not."""
    chosen = held_out(data.train.labels, SHARE)
    fields = small.fields(data={"name": "digits", "image_size": 8, "held_out_share": SHARE}, epochs=1, warmup_epochs=0)
    fields |= {"weak_augmentation_epochs": 0, "knn_every_epochs": 0}
    spec = parse_spec("pretrain", fields)
    assert isinstance(spec, PretrainSpec)
    results = []
    for number, changed in enumerate((None, chosen, ~chosen)):
        images = data.train.images.clone()
        if changed is not None:
            images[changed] = 255 - images[changed]
        each = dataclasses.replace(data, train=dataclasses.replace(data.train, images=images))
        training = MemoryReporter()
        pretrain(spec, training, dataset=each, output_dir=tmp_path / str(number))
        results.append(training.of("checkpoint")[-1]["sha256"])

    assert results[0] == results[1] != results[2]


def test_label_lists_and_a_held_out_share_exclude_each_other() -> None:
    tuned = {"protocols": ["semi_supervised"], "semi_supervised": {"lists": ["official-1"]}}
    data = {"name": "small", "held_out_share": SHARE}
    for kind, sent in (
        ("evaluate", {"data": data, "features": {"kind": "untrained"}, **tuned}),
        ("pretrain", {"data": data, "evaluations": [tuned]}),
        ("pretrain", {"data": {"name": "small"}, "evaluations": [tuned | {"data": data}]}),
    ):
        with pytest.raises(ValidationError, match="held_out_share"):
            parse_spec(kind, sent)  # type: ignore[arg-type]


def evaluation(share: float) -> EvaluateSpec:
    features: dict[str, Any] = {"kind": "checkpoint", "checkpoint_id": "0197d0a0-0000-7000-8000-000000000001"}
    data = {"name": "digits", "image_size": 8, "held_out_share": share}
    spec = parse_spec("evaluate", {"data": data, "features": features, "protocols": ["knn"], "knn_k": 1})
    assert isinstance(spec, EvaluateSpec)
    return spec
