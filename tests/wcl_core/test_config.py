"""Specs: a wrong value is refused with the name of its field, and a valid spec has one meaning."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from tests.wcl_core import small
from wcl_core.config import (
    PROTOCOLS,
    Kind,
    MultiCropConfig,
    PretrainSpec,
    Protocol,
    measure_title,
    method_title,
    parse_spec,
    protocol_facts,
    protocol_place,
    resolve_spec,
    result_title,
    why_no_weak_labels,
)

EVALUATE: dict[str, Any] = {"data": {"name": "digits"}, "features": {"kind": "pixels"}}


def wrong_fields(kind: Kind, sent: dict[str, Any]) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        parse_spec(kind, sent)
    return [".".join(map(str, error["loc"])) for error in caught.value.errors()]


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("colour", 1),
        ("loss.temprature", 0.1),
        ("optimizer.beta1", 0.9),
        ("epochs", "many"),
        ("epochs", 2.5),
        ("epochs", None),
        ("heads", 7),
        ("loss.detach_keys", "perhaps"),
        ("seed", -1),
        ("seed", 2**31),
        ("epochs", 0),
        ("batch_size", 1),
        ("loss.temperature", 0.0),
        ("loss.temperature", float("nan")),
        ("loss.weak_weight", float("inf")),
        ("loss.weak_ramp_fraction", 1.1),
        ("optimizer.momentum", 1.0),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.name", "adam"),
        ("augmentation.hue", 0.6),
        ("augmentation.scale_min", 0.0),
        ("weak_augmentation.blur_probability", 1.5),
        ("backbone.width", 2),
        ("backbone.stem", "large"),
        ("checkpoints.every_epochs", 0),
        ("method", "moco"),
        ("precision", "float16"),
        ("threads", 0),
        ("loss.finch_level", 3),
        ("optimizer.lars_exclusion", "none"),
        ("multi_crop.crops", 17),
        ("multi_crop.neighbours", 0),
        ("multi_crop.scale_max", 0.01),
        ("multi_crop.own_share", 1.5),
        ("queue_size", -64),
        ("momentum_decay", 1.0),
        ("micro_batch_size", 1),
        ("spec_version", 3),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(path: str, value: Any) -> None:
    assert wrong_fields("pretrain", small.fields(**nested(path, value))) == [path]


@pytest.mark.parametrize("name", ["../etc", "/data/x", "Digits", "", "a" * 65, "http://x", 3])
def test_a_dataset_is_a_registered_name_never_a_path(name: Any) -> None:
    assert wrong_fields("pretrain", small.fields(data={"name": name})) == ["data.name"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"epochs": 3, "warmup_epochs": 3}, "warmup_epochs"),
        ({"epochs": 3, "weak_augmentation_epochs": 4}, "weak_augmentation_epochs"),
        ({"backbone": {"name": "resnet18", "width": 16}}, "backbone.width"),
        ({"optimizer": {"name": "adamw"}}, "optimizer.learning_rate"),
        ({"optimizer": {"name": "adamw", "learning_rate": 1e-3, "betas": [0.9, 1.0]}}, "optimizer.betas.1"),
        ({"method": "simclr", "loss": {"finch_level": 2}}, "loss"),
        ({"method": "simclr", "loss": {"exclude_mates": True}}, "loss"),
        ({"method": "simclr", "queue_size": 64}, "queue_size"),
        ({"method": "simclr", "multi_crop": {"crops": 1, "restrict_to_component": True}}, "multi_crop"),
        ({"batch_size": 64, "queue_size": 96}, "queue_size"),
        ({"loss": {"finch_level": 2}, "queue_size": 64}, "queue_size"),
        ({"loss": {"detach_keys": False}, "momentum_decay": 0.9}, "momentum_decay"),
        ({"batch_size": 64, "micro_batch_size": 24}, "micro_batch_size"),
        ({"batch_size": 4, "multi_crop": {"crops": 1, "neighbours": 4}}, "multi_crop"),
        ({"multi_crop": {"crops": 1, "image_size": 16}}, "multi_crop"),
        (
            {
                "data": {"name": "digits", "image_size": 32},
                "backbone": {"name": "vit_small", "patch_size": 16},
                "multi_crop": {"crops": 1, "image_size": 24},
            },
            "multi_crop",
        ),
    ],
)
def test_a_contradiction_is_reported_at_the_later_field(changes: dict[str, Any], field: str) -> None:
    assert wrong_fields("pretrain", small.fields(**changes)) == [field]


def test_short_runs_warm_up_for_a_tenth_by_default() -> None:
    sent = {"data": {"name": "digits"}, "epochs": 25}
    short, explicit = parse_spec("pretrain", sent), parse_spec("pretrain", sent | {"warmup_epochs": 10})
    long = parse_spec("pretrain", sent | {"epochs": 200})

    assert isinstance(short, PretrainSpec)
    assert isinstance(explicit, PretrainSpec)
    assert isinstance(long, PretrainSpec)
    assert (short.warmup_epochs, short.weak_augmentation_epochs) == (2.5, 2)
    assert (explicit.warmup_epochs, explicit.weak_augmentation_epochs) == (10, 2)
    assert (long.warmup_epochs, long.weak_augmentation_epochs) == (10, 10)
    assert wrong_fields("pretrain", sent | {"warmup_epochs": 25}) == ["warmup_epochs"]


@pytest.mark.parametrize(("side", "small_side"), [(8, 8), (32, 16), (96, 40), (224, 96)])
def test_small_crops_are_less_than_half_the_views(side: int, small_side: int) -> None:
    assert MultiCropConfig().side(side) == small_side
    assert MultiCropConfig(image_size=24).side(side) == 24


def test_all_wrong_fields_are_reported_together() -> None:
    sent = small.fields(epochs=-1, warmup_epochs=2, seed="x", data={"name": "digits", "image_size": 4})
    assert sorted(wrong_fields("pretrain", sent)) == ["data.image_size", "epochs", "seed"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"features": {"kind": "magic"}}, "features"),
        ({"features": {"kind": "checkpoint"}}, "features.checkpoint.checkpoint_id"),
        ({"features": {"kind": "checkpoint", "checkpoint_id": "7"}}, "features.checkpoint.checkpoint_id"),
        ({"features": {"kind": "pixels", "backbone": {}}}, "features.pixels.backbone"),
        ({"protocols": []}, "protocols"),
        ({"protocols": ["knn", "knn"]}, "protocols"),
        ({"protocols": ["knn", "guess"]}, "protocols.1"),
        ({"labels_per_class": [1, 1]}, "labels_per_class"),
        ({"labels_per_class": [5, 0]}, "labels_per_class.1"),
        ({"draws": 1}, "draws"),
        ({"knn_temperature": 0}, "knn_temperature"),
        ({"knn_k": 0}, "knn_k"),
    ],
)
def test_evaluate_specs_name_the_field_too(changes: dict[str, Any], field: str) -> None:
    assert wrong_fields("evaluate", EVALUATE | changes) == [field]


def test_a_spec_cannot_change() -> None:
    parsed = small.spec()
    with pytest.raises(ValidationError, match="frozen"):
        parsed.epochs = 7


def test_a_resolved_spec_resolves_to_the_same_text() -> None:
    """Checkpoints carry the resolved spec: its text must not depend on how often it was parsed."""
    resolved = PretrainSpec.model_validate({"data": {"name": "digits"}})
    again = parse_spec("pretrain", json.loads(json.dumps(resolve_spec(resolved))))
    assert json.dumps(resolve_spec(again)) == json.dumps(resolve_spec(resolved))


def test_the_table_of_protocols_has_an_entry_for_each_and_titles_for_unknown_ones_too() -> None:
    assert tuple(PROTOCOLS) == get_args(Protocol)
    assert (protocol_facts("knn_wide").title, protocol_facts("of_old").title) == ("wide kNN", "of old")
    assert (measure_title("top1"), measure_title("of_old")) == ("accuracy", "of old")
    assert result_title("knn", "top1") == "kNN accuracy"
    assert result_title("few_labels", "top1") == "Few-label accuracy"
    assert result_title("of_old", "of_yore") == "Of old of yore"
    assert protocol_facts("retrieval").is_main("recall_at_1")
    assert not protocol_facts("retrieval").is_main("recall_at_5")
    assert not protocol_facts("of_old").is_main("top1")


def test_titles_of_methods_and_reasons_for_no_weak_labels() -> None:
    assert [method_title(name) for name in ("wcl", "simclr", "not-installed")] == ["WCL", "SimCLR", "not-installed"]
    assert "SimCLR makes no weak labels" in (why_no_weak_labels("simclr") or "")
    assert [why_no_weak_labels(name) for name in ("wcl", "not-installed")] == [None, None]


def test_processes_share_the_global_batch_equally() -> None:
    assert parse_spec("pretrain", small.fields(batch_size=12, processes=4)).model_dump()["processes"] == 4
    assert wrong_fields("pretrain", small.fields(batch_size=12, processes=5)) == ["processes"]
    assert wrong_fields("pretrain", small.fields(processes=0)) == ["processes"]


def test_protocols_are_listed_from_the_quickest_and_unknown_ones_last() -> None:
    names = ["of an older release", "few_labels", "linear", "knn"]
    assert sorted(names, key=protocol_place) == names[::-1]
